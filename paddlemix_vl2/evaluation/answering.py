"""The loop of a run: what a journal does not have yet is read, answered and kept."""

from collections.abc import Iterator
from typing import Any, Protocol

from paddlemix_vl2.evaluation.journal import Journal
from paddlemix_vl2.generation.batched import ConversationAnswer, GenerationLimits, answer_conversations


class ConversationSource(Protocol):
    """Numbered conversations, and what becomes of their answers."""

    def __len__(self) -> int: ...

    def conversation(self, number: int) -> list[dict]:
        """Raises ``ValueError`` where it cannot be read."""

    def result(self, number: int, answer: ConversationAnswer) -> dict[str, Any]:
        """What is written; with a key ``error`` where the answer has one."""


def answer_missing(
    model, processor, source: ConversationSource, journal: Journal, limits: GenerationLimits
) -> Iterator[dict[str, Any]]:
    """Answer what the journal does not have; each result is kept in it and then passed on.

    Args:
        model, processor: as :func:`answer_conversations`.

    Raises:
        ValueError: the model cannot compute.
    """

    def conversations():
        for number in journal.missing:
            try:
                yield number, source.conversation(number)
            except ValueError as error:
                yield number, error

    for answer in answer_conversations(model, processor, conversations(), limits):
        result = source.result(answer.number, answer)
        journal.write(answer.number, result)
        yield result
