"""A page in the browser to talk with a model about pictures.

chat     turns of a conversation -> the model's answer as it is generated, with boxes on the picture
session  one question from the page: what to show at each moment, stop, mistakes as sentences
display  turns -> the messages of the chat widget
wording  what the page says, in English and Chinese
page     the widgets; the only file that knows gradio

The page needs ``config`` and ``generate`` of a model only; nothing here imports ``models``.
"""
