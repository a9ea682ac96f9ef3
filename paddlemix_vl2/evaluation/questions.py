"""Questions of a benchmark, from records in the layouts in which benchmarks are published.

The layouts differ in the names of their fields and little else, so one table of names reads them all::

    TSV                 index  image | image_path  question  answer  A B C ...  hint  category  split
    DocVQA, InfoVQA     questionId  image | image_local_name  question  answers
    ChartQA             imgname  query  label
    TextVQA             question_id  image_id  question  answers
    OCRBench            id  image_path  question  answers  type
    RefCOCO             image  sent | expression  bbox  width  height
    one's own           id  image | images  question  answer | answers  options  hint  category  metric
"""

import ast
import os
import re
import string
from dataclasses import dataclass, field

from PIL import Image

from paddlemix_vl2.data.formats import read_picture
from paddlemix_vl2.data.records import RecordFile
from paddlemix_vl2.evaluation.tasks import METRICS, MIN_VOTES, Task
from paddlemix_vl2.processing.pictures import decode_base64, open_picture
from paddlemix_vl2.processing.processor import Picture

_IDS = ("index", "questionId", "question_id", "id")
_QUESTIONS = ("question", "query", "sent", "expression")
_ANSWERS = ("answer", "answers", "label")
_PICTURES = ("image", "images", "image_path", "imgname", "image_local_name", "image_id")
_CATEGORIES = ("category", "type", "question_type", "question_types")
BOX_FORMATS = ("xyxy", "xywh")
_MAX_REFERENCE = 64  # a shorter ``image`` of a TSV names the row that has the picture
_LIST = re.compile(r"""^\s*\[.*\]\s*$""", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A question with its right answers; its pictures may still be files.

    Attributes:
        id: the record's own name for it; its number where it has none.
        answers: at least one, except where ``box`` is the answer. Of multiple choice they are letters.
        options: letter -> text; empty where the question is open.
        box: left, top, right, bottom in pixels of a picture of ``size``.
    """

    id: str
    text: str
    pictures: list[Picture]
    answers: list[str]
    metric: str
    options: dict[str, str] = field(default_factory=dict)
    hint: str = ""
    category: str = ""
    box: tuple[float, float, float, float] | None = None
    size: tuple[int, int] | None = None


class QuestionFile:
    """The questions of a file: ``len(questions)``, ``questions[i]``, ``questions.place(i)``.

    Args:
        task: whose metric the questions have.
        folder: what paths of pictures start from; the file's folder where absent.
        split: only the records whose field ``split`` (or ``data_split``) has this value.
        limit: only the first ones.
        bbox_format: how boxes are written where a record has no ``bbox_format``: with their right and bottom
            (``xyxy``) or with their width and height (``xywh``).

    Raises:
        ValueError: no record is of this split.
    """

    def __init__(
        self,
        records: RecordFile,
        task: Task,
        folder: str | os.PathLike | None = None,
        split: str | None = None,
        limit: int | None = None,
        bbox_format: str = BOX_FORMATS[0],
    ):
        self.records, self.task, self.bbox_format = records, task, bbox_format
        self.folder = os.fspath(records.path.parent if folder is None else folder)
        numbers = [number for number in range(len(records)) if split is None or self._is_of(number, split)]
        if not numbers:
            raise ValueError(f"{records.path}: no record has {split!r} as its split")
        self._numbers = numbers[:limit]
        self._rows: dict[str, int] | None = None  # index of a TSV's row -> its number

    def _is_of(self, number: int, split: str) -> bool:
        try:
            entry = self.records.read(number)
        except ValueError:
            return True  # whatever it is of, it is not lost silently
        return str(_first(entry, ("split", "data_split")) or "") == split

    def __len__(self) -> int:
        return len(self._numbers)

    def place(self, index: int) -> str:
        """The place of question ``index``: file and line, or file and entry."""
        return self.records.place(self._numbers[index])

    def __getitem__(self, index: int) -> Question:
        """Question ``index``, with the pictures of the file decoded.

        Raises:
            ValueError: the record is broken; the message does not name its place.
        """
        number = self._numbers[index]
        return self._read(self.records.read(number), number)

    def _read(self, entry: dict, number: int) -> Question:
        text = _first(entry, _QUESTIONS)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"has no question ({', '.join(_QUESTIONS)})")
        metric = entry.get("metric", self.task.metric)
        if metric not in METRICS:
            raise ValueError(f"'metric' is {metric!r}; use one of {', '.join(METRICS)}")
        pictures = self._pictures(entry)
        options = _options(entry) if metric == "choice" else {}
        box, size = _box(entry, pictures, self.bbox_format) if metric == "box" else (None, None)
        answers = [] if metric == "box" else _answers(entry, metric, options)
        identity, category = _first(entry, _IDS), _first(entry, _CATEGORIES)
        return Question(
            id=str(number if identity is None else identity),
            text=text.strip(),
            pictures=pictures,
            answers=answers,
            metric=metric,
            options=options,
            hint=str(entry.get("hint") or "").strip(),
            category=", ".join(category) if isinstance(category, list) else str(category or ""),
            box=box,
            size=size,
        )

    # ---- pictures ----

    def _pictures(self, entry: dict) -> list[Picture]:
        if self.records.is_table and "image" in entry:
            return [decode_base64(content, "'image'") for content in self._encoded(entry["image"])]
        name = next((name for name in _PICTURES if entry.get(name)), None)
        if name is None:
            return []
        value = _listed(entry[name]) if isinstance(entry[name], str) else entry[name]
        if name == "image_id":  # TextVQA's files are named so
            value = f"{value}.jpg"
        value = value if isinstance(value, list) else [value]
        return [read_picture(one, name, self.folder) for one in value]

    def _encoded(self, text: str) -> list[str]:
        """The base64 of one picture or of a list of them, from the row that has it."""
        if len(text) < _MAX_REFERENCE and not _LIST.match(text):
            row = self._row_of(text.strip())
            text = self.records.read(row).get("image", "")
            if len(text) < _MAX_REFERENCE:
                raise ValueError(f"'image' names {self.records.place(row)}, which has no picture either")
        return [part for part in re.split(r"[\s\[\]'\",]+", text) if part]

    def _row_of(self, index: str) -> int:
        if self._rows is None:
            self._rows = {}
            for number in range(len(self.records)):
                try:
                    self._rows.setdefault(self.records.read(number).get("index", ""), number)
                except ValueError:
                    continue  # reported when it is its turn
        if index not in self._rows:
            raise ValueError(
                f"'image' is {index!r}: neither base64 nor the index of a row; a path is an image_path"
            )
        return self._rows[index]


def _first(entry: dict, names: tuple[str, ...]):
    """The value of the first of these fields that the entry has."""
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _listed(text: str):
    """The list that a text writes, as spreadsheets and TSV files do; else the text."""
    if not _LIST.match(text):
        return text
    try:
        value = ast.literal_eval(text)
    # literal_eval raises what its parser comes across; the text is then no list but begins like one.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _answers(entry: dict, metric: str, options: dict[str, str]) -> list[str]:
    value = _first(entry, _ANSWERS)
    value = _listed(value) if isinstance(value, str) else value
    value = value if isinstance(value, list) else [value]
    answers = [str(answer) for answer in value if answer is not None]
    if not answers:
        raise ValueError(f"has no answer ({', '.join(_ANSWERS)}); the test sets of some benchmarks have none")
    if metric == "vqa" and len(answers) < MIN_VOTES:
        raise ValueError(f"has {len(answers)} answer(s); VQA accuracy takes {MIN_VOTES} or more")
    if not options:
        return answers
    letters = [answer.strip().upper() for answer in answers]
    if unknown := [letter for letter in letters if letter not in options]:
        raise ValueError(f"the answer is {unknown[0]!r}, the options are {', '.join(options)}")
    return letters


def _options(entry: dict) -> dict[str, str]:
    """Letter -> text, from the fields A, B, C ... or from ``options``, a list or an object."""
    given = entry.get("options")
    given = _listed(given) if isinstance(given, str) else given
    if isinstance(given, dict):
        return {str(letter): str(text) for letter, text in given.items()}
    if isinstance(given, list):
        return dict(zip(string.ascii_uppercase, map(str, given), strict=False))
    named = {letter: str(entry[letter]) for letter in string.ascii_uppercase if entry.get(letter) is not None}
    return {letter: text for letter, text in named.items() if text.strip() and text.strip() != "nan"}


def _box(entry: dict, pictures: list[Picture], written: str) -> tuple[tuple[float, ...], tuple[int, int]]:
    """The box in pixels and the picture's size. Where the record has no ``width`` and ``height``, the picture
    is opened in its place."""
    box = entry.get("bbox")
    box = _listed(box) if isinstance(box, str) else box
    if not isinstance(box, list) or len(box) != 4 or any(type(value) not in (int, float) for value in box):
        raise ValueError(f"'bbox' is four numbers, not {box!r}")
    written = entry.get("bbox_format", written)
    if written not in BOX_FORMATS:
        raise ValueError(f"'bbox_format' is {written!r}; use one of {', '.join(BOX_FORMATS)}")
    left, top, right, bottom = box
    if written == "xywh":
        right, bottom = left + right, top + bottom
    if len(pictures) != 1:
        raise ValueError(f"has {len(pictures)} pictures; a box is in one")
    size = _size(entry)
    if size is None:
        # The opened picture takes the file's place: it is decoded once.
        pictures[0] = _opened(pictures[0])
        size = pictures[0].size
    if not (0 <= left < right <= size[0] + 1 and 0 <= top < bottom <= size[1] + 1):
        raise ValueError(f"'bbox' {box} ({written}) is not inside a picture of {size[0]} x {size[1]} pixels")
    return (left, top, right, bottom), size


def _size(entry: dict) -> tuple[int, int] | None:
    given = entry.get("width"), entry.get("height")
    if None in given:
        return None
    try:
        width, height = (int(float(side)) for side in given)  # pandas writes 640.0
    except (TypeError, ValueError, OverflowError):
        width = height = 0
    if min(width, height) < 1:
        raise ValueError(f"'width' and 'height' are pixels, not {given[0]!r} and {given[1]!r}")
    return width, height


def _opened(picture: Picture) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else open_picture(picture)
