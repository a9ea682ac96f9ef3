"""Turns as the chat widget shows them: messages of text and files, in Markdown."""

from collections.abc import Sequence

from paddlemix_vl2.processing.tokenizer import GROUNDING_TOKENS
from paddlemix_vl2.web.chat import Turn

# Labels in bold, boxes as code; the tags themselves say nothing to the reader.
_READABLE = dict(zip(GROUNDING_TOKENS, ("**", "**", " `", "`", ""), strict=True))
_WAITING = "…"


def to_messages(turns: Sequence[Turn]) -> list[dict]:
    """A question with its pictures, then its answer with the picture of the boxes, for every turn."""
    messages = []
    for turn in turns:
        files = [{"path": str(file)} for file in turn.pictures]
        messages.append({"role": "user", "content": [*files, plain(turn.question)]})
        boxed = [] if turn.boxed is None else [{"path": str(turn.boxed), "alt_text": "boxes"}]
        messages.append({"role": "assistant", "content": [show_answer(turn.answer) or _WAITING, *boxed]})
    return messages


def plain(text: str) -> str:
    """Text whose tags are shown and are not HTML.

    >>> plain("Is <image> a <b>cat</b>?")
    'Is &lt;image&gt; a &lt;b&gt;cat&lt;/b&gt;?'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def show_answer(text: str) -> str:
    """An answer with its grounding tokens made readable; other tags are text and not HTML.

    >>> show_answer("<|ref|>the dog<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>")
    '**the dog** `[[1, 2, 3, 4]]`'
    """
    for token, shown in _READABLE.items():
        text = text.replace(token, shown)
    return text.replace("<", "&lt;").strip()
