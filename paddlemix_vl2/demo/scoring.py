"""Right or wrong, and tables of it."""

from collections.abc import Iterable

from paddlemix_vl2.demo.questions import CLOSED, READING, SyntheticQuestion
from paddlemix_vl2.demo.vocabulary import LANGUAGES
from paddlemix_vl2.processing.boxes import LARGEST_COORDINATE, MIN_IOU, box_iou, parse_boxes

GROUPS = {"closed questions": CLOSED, "reading": READING, "grounding": ("ground",)}


def is_right(question: SyntheticQuestion, answer: str) -> bool:
    """Whether ``answer`` is the right one.

    Boxes are right when each overlaps the true one by at least half (intersection over union); where several
    are asked for, their names and order count too. Everything else is to be said exactly, but for white space
    around it.
    """
    if question.kind not in ("ground", "grounded_describe"):
        return answer.strip() == question.answer
    expected, found = _parse(question.answer), _parse(answer)
    if len(expected) != len(found):
        return False
    if question.kind == "grounded_describe" and [e.label for e in expected] != [f.label for f in found]:
        return False
    return all(box_iou(e.box, f.box) >= MIN_IOU for e, f in zip(expected, found, strict=True))


def _parse(answer: str):
    # As if the picture had 999 pixels each way: boxes stay in the numbers of the answer.
    return parse_boxes(answer, (LARGEST_COORDINATE, LARGEST_COORDINATE)).objects


class ScoreTable:
    """How many answers were right, by kind and language."""

    def __init__(self):
        self._counts: dict[tuple[str, str], list[int]] = {}

    def add(self, question: SyntheticQuestion, right: bool) -> None:
        counts = self._counts.setdefault((question.kind, question.language), [0, 0])
        counts[0] += right
        counts[1] += 1

    def counts(
        self, kinds: Iterable[str] | None = None, languages: Iterable[str] = LANGUAGES
    ) -> tuple[int, int]:
        """Right answers and all answers of some kinds (absent: all) and languages."""
        kinds, languages = self.kinds if kinds is None else tuple(kinds), tuple(languages)
        rows = [row for (kind, own), row in self._counts.items() if kind in kinds and own in languages]
        return sum(row[0] for row in rows), sum(row[1] for row in rows)

    def rate(self, kinds: Iterable[str] | None = None, languages: Iterable[str] = LANGUAGES) -> float | None:
        """The share that was right, 0 to 1; None where nothing was asked."""
        right, total = self.counts(kinds, languages)
        return right / total if total else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that were asked, in the order in which they came."""
        return tuple(dict.fromkeys(kind for kind, _ in self._counts))

    def to_dict(self) -> dict:
        """For JSON: right and total of every kind and language, shares of the groups."""
        by_kind: dict[str, dict] = {}
        for (kind, language), (right, total) in self._counts.items():
            by_kind.setdefault(kind, {})[language] = {"right": right, "total": total}
        groups = {name: self.rate(kinds) for name, kinds in GROUPS.items()}
        return {"kinds": by_kind, "groups": {**groups, "all": self.rate()}}

    def to_markdown(self) -> str:
        """A table: a row for each kind, then for each group; columns for the languages and for both."""
        columns = [*[(language,) for language in LANGUAGES], LANGUAGES]
        rows = [("question", *LANGUAGES, "both"), ("---", *["---:"] * len(columns))]
        for name, kinds in [*[(kind, (kind,)) for kind in self.kinds], *GROUPS.items(), ("all", self.kinds)]:
            rows.append((name, *[_percent(*self.counts(kinds, languages)) for languages in columns]))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _percent(right: int, total: int) -> str:
    return f"{100 * right / total:.0f} % ({right}/{total})" if total else "-"
