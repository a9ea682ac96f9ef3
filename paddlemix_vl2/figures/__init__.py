"""Figures that explain a model or a run; matplotlib's ``Figure`` each, or a picture.

boxes          labelled boxes on a picture
tiles          a picture's tiles, and the order of its tokens
router         what the routers do with a text and a picture -> arrays
router_figure  these arrays -> a figure
training       ``metrics.jsonl`` of one run or several -> curves
picture        a figure -> a picture
"""
