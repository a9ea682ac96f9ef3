"""A page in the browser to talk with a model about pictures.

chat     turns of a conversation -> the model's answer as it comes, boxes drawn on the picture
session  one question from the page: what to show at each moment, stop, mistakes as sentences
display  turns -> the messages of the chat widget
wording  what the page says, in English and Chinese
page     the widgets; the only file that knows gradio

The page asks of a model ``config`` and ``generate`` only; nothing here imports ``models``.
"""
