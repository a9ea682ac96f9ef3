"""The conversation template: checked messages and the pieces of text that they become.

A conversation is a list of messages ``{"role": ..., "content": ..., "images": [...]}``: at most one system
message, first, then user and assistant in turn. Each piece is tokenised on its own, as in the published
code::

    system      {content}
    user        <|User|>: {content}\\n\\n<|Assistant|>:
    assistant   {content}, closed by the end-of-sentence token

with surrounding white space stripped. Source: ``format_messages_v2`` of the published processor and its
"deepseek" template.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, USER_TOKEN

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {USER_TOKEN: USER, "user": USER, ASSISTANT_TOKEN: ASSISTANT, "assistant": ASSISTANT, "system": SYSTEM}


@dataclass(frozen=True)
class Message:
    """One message, its role as one of ``system``, ``user``, ``assistant`` and its text stripped.

    Attributes:
        place: how errors name it, e.g. "message 0 (<|User|>)".
        pictures: what its ``images`` holds; None where it has no such key.
    """

    role: str
    content: str
    place: str
    pictures: list | None = None


@dataclass(frozen=True)
class Piece:
    """Text that is tokenised on its own.

    Attributes:
        pictures: one per ``<image>`` in the text, in order.
        closed: whether the end-of-sentence token follows.
        is_answer: whether the model is to learn it when prompts are masked.
    """

    text: str
    pictures: list = field(default_factory=list)
    closed: bool = False
    is_answer: bool = False


def build_pieces(
    conversation: Sequence[dict],
    pictures: list | None,
    image_token: str,
    inference_mode: bool,
    system_prompt: str = "",
) -> list[Piece]:
    """Check a conversation and turn it into pieces of text, each with its pictures.

    In inference the last piece is left open for the model to continue. The last message may be an empty
    assistant message (the published form), the user's (the same prompt, since a user message brings
    ``<|Assistant|>:`` with it), or an assistant message with text: the beginning of the answer, which the
    model then continues. In training every user message is followed by an answer that has text.

    Args:
        pictures: the pictures of the whole conversation in order; they take the place of those named in the
            messages. None: the messages name them.
        system_prompt: the same as a first message of the role ``system``.

    Raises:
        ValueError: the conversation breaks one of these rules, or the number of pictures is not that of
            ``<image>``.
    """
    messages = [_read_message(index, message) for index, message in _enumerate_messages(conversation)]
    _check_order(messages)
    _check_texts(messages, image_token, inference_mode)
    if system_prompt and messages[0].role == SYSTEM:
        raise ValueError(
            f"system_prompt is given and {messages[0].place} is a system message too; keep one of them"
        )
    if system_prompt:
        system = _read_message("system_prompt", {"role": SYSTEM, "content": system_prompt})
        _check_no_image(system, image_token)
        messages.insert(0, system)
    shares = _share_pictures(messages, pictures, image_token)
    pieces = [_to_piece(message, share) for message, share in zip(messages, shares, strict=True)]
    if inference_mode and messages[-1].role == ASSISTANT:
        pieces[-1] = Piece(messages[-1].content, is_answer=True)
    return pieces


def place_pictures(question: str, num_pictures: int, image_token: str) -> str:
    """The content of a user message; where the question does not say where its pictures belong, they come
    first.

    >>> place_pictures("What is new?", 2, "<image>")
    '<image>\\n<image>\\nWhat is new?'
    """
    return question if image_token in question else f"{image_token}\n" * num_pictures + question


def _enumerate_messages(conversation: Sequence[dict]):
    if isinstance(conversation, str) or not isinstance(conversation, Sequence):
        raise ValueError(
            f"a conversation is a list of messages, not {type(conversation).__name__}; "
            "text that is already in the template goes into prompt="
        )
    if not conversation:
        raise ValueError("the conversation is empty; it needs at least one user message")
    return enumerate(conversation)


def _read_message(index: int | str, message: Any) -> Message:
    place = f"message {index}" if isinstance(index, int) else index
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise ValueError(f"{place}: a message is a dictionary with role and content, not {str(message)[:80]}")
    role, content, pictures = message["role"], message["content"], message.get("images")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{place}: unknown role {role!r}; use one of {', '.join(ROLES)}")
    place = f"{place} ({role})"
    if not isinstance(content, str):
        raise ValueError(f"{place}: content is text, not {type(content).__name__}")
    if pictures is not None and not isinstance(pictures, list | tuple):
        raise ValueError(f"{place}: images is a list, not {type(pictures).__name__}")
    if pictures and ROLES[role] != USER:
        raise ValueError(f"{place}: has images; pictures belong into user messages")
    return Message(ROLES[role], content.strip(), place, None if pictures is None else list(pictures))


def _check_order(messages: list[Message]) -> None:
    for message in messages[1:]:
        if message.role == SYSTEM:
            raise ValueError(f"{message.place}: a system message is only possible as the first message")
    turns = messages[1:] if messages[0].role == SYSTEM else messages
    if not turns:
        raise ValueError("the conversation has a system message only; it needs at least one user message")
    for index, message in enumerate(turns):
        expected = ASSISTANT if index % 2 else USER
        if message.role != expected:
            raise ValueError(
                f"{message.place}: expected the role {expected}; user and assistant take turns, user first"
            )


def _check_texts(messages: list[Message], image_token: str, inference_mode: bool) -> None:
    if not inference_mode and messages[-1].role != ASSISTANT:
        raise ValueError(f"{messages[-1].place}: a training conversation ends with the assistant's answer")
    for message in messages:
        is_open_answer = inference_mode and message is messages[-1] and message.role == ASSISTANT
        if not message.content and not is_open_answer:
            hint = (
                "; only the last assistant message may be, for the model to fill in" if inference_mode else ""
            )
            raise ValueError(f"{message.place}: is empty{hint}")
        if message.role != USER:
            _check_no_image(message, image_token)


def _check_no_image(message: Message, image_token: str) -> None:
    if image_token in message.content:
        raise ValueError(
            f"{message.place}: has {image_token} in its text; pictures belong into user messages"
        )


def _share_pictures(messages: list[Message], pictures: list | None, image_token: str) -> list[list]:
    """The pictures of each message: those it names, or its share of ``pictures``."""
    counts = [message.content.count(image_token) for message in messages]
    if pictures is None:
        named = [message.pictures or [] for message in messages]
        for message, count, own in zip(messages, counts, named, strict=True):
            if count != len(own):
                raise ValueError(
                    f"{message.place}: {count} {image_token} in the text but {len(own)} picture(s) in images"
                )
        return named
    if sum(counts) != len(pictures):
        where = ", ".join(f"{count} in {m.place}" for m, count in zip(messages, counts, strict=True) if count)
        raise ValueError(
            f"the conversation has {sum(counts)} {image_token} ({where or 'in no message'}) "
            f"but images= holds {len(pictures)} picture(s)"
        )
    ends = [sum(counts[: index + 1]) for index in range(len(counts))]
    return [pictures[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _to_piece(message: Message, pictures: list) -> Piece:
    if message.role == USER:
        return Piece(f"{USER_TOKEN}: {message.content}\n\n{ASSISTANT_TOKEN}:", pictures)
    if message.role == SYSTEM:
        return Piece(message.content)
    return Piece(message.content, closed=True, is_answer=True)
