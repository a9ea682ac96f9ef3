"""One sample as it was read, and the error of a sample that cannot be used."""

from typing import NamedTuple


class Record(NamedTuple):
    """One sample of a source: a conversation or a plain text, never both.

    Attributes:
        messages: of the processor's form, each with its ``images`` (paths or PIL images); or None.
        text: a plain document; or None.
        place: where it stands, e.g. "train.jsonl:12"; errors begin with it.
    """

    messages: list[dict] | None
    text: str | None
    place: str


class BrokenSample(ValueError):
    """A sample that cannot be used, through no fault of the program: the stream goes on without it.

    Attributes:
        place: where the sample stands.
        reason: what is wrong with it, one line.
    """

    def __init__(self, place: str, reason: str):
        # Both as arguments: an exception crosses to another process as its class and its arguments.
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class TooLong(BrokenSample):
    """A sample with more tokens than a sequence may have, and nothing that may be left out."""
