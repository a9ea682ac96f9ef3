"""Conversation templates: messages to the pieces of text that are tokenised.

Each piece is tokenised on its own, as in the published code. ``deepseek``, with surrounding white space
stripped::

    system      {content}
    user        <|User|>: {content}\\n\\n<|Assistant|>:
    assistant   {content}, closed by the end-of-sentence token

Source: ``format_messages_v2`` of the published processor and its "deepseek" template.
"""

from collections.abc import Callable
from dataclasses import dataclass

from paddlemix_vl2.processing.conversation import ASSISTANT, USER, Conversation, Message
from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, USER_TOKEN


@dataclass(frozen=True)
class Piece:
    """Text that is tokenised on its own.

    Attributes:
        images: one per ``<image>`` in the text, in order.
        closed: whether the end-of-sentence token follows.
        is_answer: whether the model is to learn it when prompts are masked.
    """

    text: str
    images: tuple = ()
    closed: bool = False
    is_answer: bool = False


def deepseek_pieces(conversation: Conversation) -> list[Piece]:
    """The pieces of a conversation; in inference the last one is left open for the model to continue."""
    pieces = [_piece(message) for message in conversation.messages]
    last = conversation.messages[-1]
    if conversation.inference_mode and last.role == ASSISTANT:
        pieces[-1] = Piece(last.content, is_answer=True)
    return pieces


def _piece(message: Message) -> Piece:
    if message.role == USER:
        return Piece(f"{USER_TOKEN}: {message.content}\n\n{ASSISTANT_TOKEN}:", message.images)
    is_answer = message.role == ASSISTANT
    return Piece(message.content, closed=is_answer, is_answer=is_answer)


# ``sft_format`` of processor_config.json -> its template.
TEMPLATES: dict[str, Callable[[Conversation], list[Piece]]] = {"deepseek": deepseek_pieces}
