"""Stop strings in text that comes piece by piece."""

from collections.abc import Sequence


class StopFilter:
    """Hands text on up to the first stop string; what could be the beginning of one is held back.

    Of several the one that is complete first counts, so that the result does not depend on the pieces.

    Attributes:
        found: whether a stop string has come; nothing is handed on any more.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def put(self, piece: str) -> str:
        """The text that is certain now, often empty."""
        if self.found:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        self.found = bool(found)
        end = min(found)[1] if found else len(text) - self._open_length(text)
        self._held = "" if found else text[end:]
        return text[:end]

    def finish(self) -> str:
        """What was held back; there is no more text that could complete it."""
        held, self._held = self._held, ""
        return held

    def _open_length(self, text: str) -> int:
        """Length of the longest end of ``text`` that is the beginning of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
