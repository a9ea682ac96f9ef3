"""From a model and a batch to the answer, as ids, as text, as boxes on the picture.

decoding   the loop: one token per step for every row, stop tokens
sampling   logits -> the next token
streaming  tokens -> text while it is generated
batched    many conversations -> answers, in batches of similar length
grounding  text -> labelled boxes in pixels
drawing    labelled boxes -> a picture with them, a file

The loop asks of a model two methods only; nothing here imports ``models``.
"""
