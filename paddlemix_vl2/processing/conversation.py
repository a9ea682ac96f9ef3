"""Conversations: parsed and checked once, then one object on the whole way to the ids.

A conversation is a list of messages ``{"role": ..., "content": ..., "images": [...]}``: at most one system
message, first, then user and assistant, alternating; each ``<image>`` in a user message is a picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, IMAGE_TOKEN, USER_TOKEN

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {USER_TOKEN: USER, "user": USER, ASSISTANT_TOKEN: ASSISTANT, "assistant": ASSISTANT, "system": SYSTEM}


@dataclass(frozen=True)
class Message:
    """One message, its role as one of ``system``, ``user``, ``assistant`` and its text stripped.

    Attributes:
        place: how errors name it, e.g. "message 0 (<|User|>)".
        images: one per ``<image>`` in the text, in order.
    """

    role: str
    content: str
    place: str
    images: tuple = ()


@dataclass(frozen=True)
class Conversation:
    """Checked messages.

    Attributes:
        inference_mode: whether the end is left open for the model to continue. The last message may then be
            an empty assistant message (the published form), the user's (the same prompt, since a user message
            brings ``<|Assistant|>:`` with it), or an assistant message with text: the beginning of the
            answer. In training every user message is followed by an answer that has text.
    """

    messages: tuple[Message, ...]
    inference_mode: bool = True

    @classmethod
    def parse(
        cls,
        messages: Sequence[dict],
        images: Sequence | None = None,
        inference_mode: bool = True,
        system_prompt: str = "",
        image_token: str = IMAGE_TOKEN,
    ) -> "Conversation":
        """Check messages as users write them.

        Args:
            images: the pictures of the whole conversation in order; they take the place of those named in the
                messages. None: the messages name them.
            system_prompt: the same as a first message of the role ``system``.

        Raises:
            ValueError: the conversation breaks a rule, or the number of pictures is not that of ``<image>``.
        """
        read = [_read_message(index, message) for index, message in _enumerate_messages(messages)]
        _check_order(read)
        _check_texts(read, image_token, inference_mode)
        if system_prompt and read[0].role == SYSTEM:
            raise ValueError(
                f"system_prompt is given and {read[0].place} is a system message too; keep one of them"
            )
        if system_prompt:
            read.insert(0, _system_message(system_prompt, image_token))
        return cls(tuple(_share_images(read, images, image_token)), inference_mode)

    @property
    def images(self) -> list:
        """All pictures in order."""
        return [image for message in self.messages for image in message.images]

    @property
    def num_turns(self) -> int:
        """User messages."""
        return sum(message.role == USER for message in self.messages)

    @property
    def has_system_message(self) -> bool:
        return self.messages[0].role == SYSTEM

    def with_system_message(self, content: str, image_token: str = IMAGE_TOKEN) -> "Conversation":
        """The conversation behind a system message."""
        return replace(self, messages=(_system_message(content, image_token), *self.messages))

    def drop_turns(self, count: int) -> "Conversation":
        """Without the last turns of user and assistant, which both have ended."""
        return replace(self, messages=self.messages[: len(self.messages) - 2 * count])

    def map_images(self, function: Callable[[Any], Any]) -> "Conversation":
        """With ``function(image)`` in the place of every picture."""
        messages = [
            replace(message, images=tuple(map(function, message.images))) if message.images else message
            for message in self.messages
        ]
        return replace(self, messages=tuple(messages))


def place_pictures(question: str, num_pictures: int, image_token: str) -> str:
    """The content of a user message; where the question does not say where its pictures belong, they come
    first.

    >>> place_pictures("What is new?", 2, "<image>")
    '<image>\\n<image>\\nWhat is new?'
    """
    return question if image_token in question else f"{image_token}\n" * num_pictures + question


def _system_message(content: str, image_token: str) -> Message:
    message = _read_message("system_prompt", {"role": SYSTEM, "content": content})
    _check_no_image(message, image_token)
    return message


def _enumerate_messages(messages: Sequence[dict]):
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise ValueError(
            f"a conversation is a list of messages, not {type(messages).__name__}; "
            "text that is already in the template goes into prompt="
        )
    if not messages:
        raise ValueError("the conversation is empty; it needs at least one user message")
    return enumerate(messages)


def _read_message(index: int | str, message: Any) -> Message:
    place = f"message {index}" if isinstance(index, int) else index
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise ValueError(f"{place}: a message is a dictionary with role and content, not {str(message)[:80]}")
    role, content, images = message["role"], message["content"], message.get("images")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{place}: unknown role {role!r}; use one of {', '.join(ROLES)}")
    place = f"{place} ({role})"
    if not isinstance(content, str):
        raise ValueError(f"{place}: content is text, not {type(content).__name__}")
    if images is not None and not isinstance(images, list | tuple):
        raise ValueError(f"{place}: images is a list, not {type(images).__name__}")
    if images and ROLES[role] != USER:
        raise ValueError(f"{place}: has images; pictures belong into user messages")
    return Message(ROLES[role], content.strip(), place, tuple(images or ()))


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


def _share_images(messages: list[Message], images: Sequence | None, image_token: str) -> list[Message]:
    """The messages with the pictures that they name, or with their shares of ``images``."""
    counts = [message.content.count(image_token) for message in messages]
    if images is None:
        for message, count in zip(messages, counts, strict=True):
            if count != len(message.images):
                raise ValueError(
                    f"{message.place}: {count} {image_token} in the text but "
                    f"{len(message.images)} picture(s) in images"
                )
        return messages
    if sum(counts) != len(images):
        where = ", ".join(f"{count} in {m.place}" for m, count in zip(messages, counts, strict=True) if count)
        raise ValueError(
            f"the conversation has {sum(counts)} {image_token} ({where or 'in no message'}) "
            f"but images= holds {len(images)} picture(s)"
        )
    remaining = iter(images)
    return [
        replace(message, images=tuple(next(remaining) for _ in range(count)))
        for message, count in zip(messages, counts, strict=True)
    ]
