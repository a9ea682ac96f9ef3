"""Conversations for the model to continue, from a question with pictures or a line of a request file."""

import os
from collections.abc import Sequence
from typing import Any

from paddlemix_vl2.data.formats import read_messages, read_picture
from paddlemix_vl2.data.records import open_records
from paddlemix_vl2.generation.batched import ConversationAnswer
from paddlemix_vl2.processing.conversation import Conversation, place_pictures
from paddlemix_vl2.processing.processor import Picture
from paddlemix_vl2.processing.tokenizer import IMAGE_TOKEN, USER_TOKEN


def make_conversation(text: str, pictures: Sequence[Picture], system_prompt: str = "") -> Conversation:
    """One question about pictures, placed where the text has ``<image>``; without it they come first, each on
    its own line.

    Raises:
        ValueError: the text has ``<image>``, but not as many as there are pictures.
    """
    marks = text.count(IMAGE_TOKEN)
    if marks and marks != len(pictures):
        raise ValueError(f"the question has {marks} {IMAGE_TOKEN} but there are {len(pictures)} picture(s)")
    content = place_pictures(text, len(pictures), IMAGE_TOKEN)
    return Conversation.parse([{"role": USER_TOKEN, "content": content}], pictures, True, system_prompt)


def read_request(entry: dict, folder: str, system_prompt: str = "") -> Conversation:
    """The conversation of an entry of a request file.

    ``{"messages": [...]}`` as in training data, its last message the user's; or ``{"question": "...",
    "image": "..."}`` with ``image`` a path, a data URL, a list of them, or absent (``images`` is the same).

    Args:
        folder: what relative paths of pictures start from.
        system_prompt: for conversations without a system message.

    Raises:
        ValueError: neither of the two forms, or a picture in it cannot be read.
    """
    if "messages" in entry:
        conversation = read_messages(entry, folder, inference_mode=True)
        if system_prompt and not conversation.has_system_message:
            return conversation.with_system_message(system_prompt)
        return conversation
    question = entry.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("has no question: 'question' is text, or 'messages' a list of messages")
    return make_conversation(question, read_pictures(entry, folder), system_prompt)


def read_pictures(entry: dict, folder: str) -> list[Picture]:
    """The pictures that ``image`` or ``images`` of an entry name; none where it has neither.

    Raises:
        ValueError: it has both, or one is neither a path nor a data URL with a picture.
    """
    given = [name for name in ("image", "images") if entry.get(name) is not None]
    if len(given) > 1:
        raise ValueError("has 'image' and 'images'; keep one of the two")
    if not given:
        return []
    value = entry[given[0]]
    return [read_picture(name, given[0], folder) for name in (value if isinstance(value, list) else [value])]


class RequestFile:
    """The conversations of a request file: a source for :func:`answer_missing`.

    Args:
        path: a JSONL file.
        folder: what relative paths of pictures start from; the file's folder where absent.
        system_prompt: for conversations without a system message.
        limit: only the first ones.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_records`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        folder: str | os.PathLike | None = None,
        system_prompt: str = "",
        limit: int | None = None,
    ):
        self.records = open_records(path)
        self.folder = os.fspath(self.records.path.parent if folder is None else folder)
        self.system_prompt = system_prompt
        self._total = len(self.records) if limit is None else min(limit, len(self.records))

    def __len__(self) -> int:
        return self._total

    def conversation(self, number: int) -> Conversation:
        """Conversation ``number``.

        Raises:
            ValueError: its line is broken.
        """
        return read_request(self.records.read(number), self.folder, self.system_prompt)

    def result(self, number: int, answer: ConversationAnswer) -> dict[str, Any]:
        """``line``, the line's ``id`` where it has one, and ``answer`` or ``error``."""
        said = {"answer": answer.text}
        if answer.error is not None:
            said = {"error": f"{self.records.place(number)}: {answer.error}"}
        return {"line": self.records.number(number), **self._id(number), **said}

    def _id(self, number: int) -> dict[str, Any]:
        try:
            entry = self.records.read(number)
        except ValueError:
            return {}
        return {"id": entry["id"]} if "id" in entry else {}
