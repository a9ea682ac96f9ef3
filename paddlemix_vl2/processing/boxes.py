"""Boxes in answers, read from the text; :mod:`paddlemix_vl2.figures.boxes` draws them.

A model that is asked where something is answers with::

    <|ref|>the dog<|/ref|><|det|>[[122, 310, 480, 998]]<|/det|>

The four integers are left, top, right and bottom, 0 to 999 of the picture's width and height; in pixels
``int(value / 999 * size)``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from paddlemix_vl2.processing.tokenizer import GROUNDING_TOKENS

LARGEST_COORDINATE = 999
# Over their union, two boxes that overlap this much are taken for the same.
MIN_IOU = 0.5

_REF, _END_REF, _DET, _END_DET = GROUNDING_TOKENS[:4]
_TAG = re.compile("|".join(map(re.escape, GROUNDING_TOKENS[:4])))
_BRACKET_OR_TEXT = re.compile(r"[\[\]]|[^\[\]]+")
_INTEGER = re.compile(r"-?[0-9]+")
_BETWEEN_BOXES = ", \n\t"
_MAX_QUOTE = 40


@dataclass(frozen=True)
class LabeledBox:
    """A named box: left, top, right, bottom in pixels. The label is empty where the answer gave none."""

    label: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Grounding:
    """What an answer says about places: the boxes in their order, and notes of what was wrong."""

    objects: list[LabeledBox] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def format_boxes(label: str, boxes: list[list[int]]) -> str:
    """Boxes as the model writes them; integers from 0 to 999.

    >>> format_boxes("dog", [[0, 0, 999, 500]])
    '<|ref|>dog<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>'
    """
    return f"{_REF}{label}{_END_REF}{_DET}{boxes}{_END_DET}"


def parse_boxes(text: str, image_size: tuple[int, int]) -> Grounding:
    """Read all boxes of an answer.

    Text that does not follow the grammar never raises. The good boxes are returned, with a note for each box
    that has not four numbers, a number that is not an integer or not in 0 to 999, or corners the wrong way
    round; likewise for tags that are not closed and for boxes without a label. Good boxes before a missing
    closing tag count: an answer may have been cut off at its longest length.

    ::

        answer = (text | object)*
        object = "<|ref|>" label "<|/ref|>" "<|det|>" boxes "<|/det|>"
        boxes  = "[" box ("," box)* "]"
        box    = "[" integer "," integer "," integer "," integer "]"

    Args:
        text: the answer, with its special tokens.
        image_size: width and height of the picture in pixels.

    Raises:
        ValueError: ``image_size`` is not two positive numbers.

    >>> parse_boxes("<|ref|>dog<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>", (640, 480)).objects
    [LabeledBox(label='dog', box=(0, 0, 640, 240))]
    """
    width, height = image_size
    if width < 1 or height < 1:
        raise ValueError(f"image_size is {tuple(image_size)}; it must be a width and a height in pixels")
    return _AnswerParser(text, (width, height)).parse()


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); it does not depend on the unit.

    >>> box_iou((0, 0, 10, 10), (5, 0, 15, 10))
    0.3333333333333333
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / union if union else 0.0


class _AnswerParser:
    """One pass over the answer, cut into tags and the text between them."""

    def __init__(self, text: str, image_size: tuple[int, int]):
        self._parts = _split_at_tags(text)  # (tag that opens the part, text up to the next tag)
        self._position = 0
        self._size = image_size
        self._result = Grounding()

    def parse(self) -> Grounding:
        label = None  # of the <|ref|> right before
        while self._position < len(self._parts):
            tag, text = self._parts[self._position]
            self._position += 1
            if tag == _REF:
                label = self._read_label(text)
                continue
            if tag == _DET:
                self._read_detection(label, text)
            elif tag:
                self._note(f"{tag} without an opening tag")
            label = None
        return self._result

    def _next_tag(self) -> str:
        return self._parts[self._position][0] if self._position < len(self._parts) else ""

    def _read_label(self, text: str) -> str | None:
        """The label, where boxes follow it; None where the reference is alone."""
        label = " ".join(text.split())
        if self._next_tag() != _END_REF:
            self._note(f"label {_short(label)} has no {_END_REF}")
            return label if self._next_tag() == _DET else None
        between = self._parts[self._position][1]
        self._position += 1
        if self._next_tag() != _DET:
            self._note(f"label {_short(label)} has no boxes")
            return None
        if between.strip():
            self._note(f"text {_short(between)} between label {_short(label)} and its boxes")
        return label

    def _read_detection(self, label: str | None, text: str) -> None:
        if label is None:
            self._note(f"boxes {_short(text)} without a label")
        owner = f"of {_short(label)}" if label else "without a label"
        if self._next_tag() == _END_DET:
            self._position += 1
        else:
            self._note(f"boxes {owner} have no {_END_DET}")
        bodies, problems = _split_boxes(text)
        for problem in problems:
            self._note(f"boxes {owner}: {problem}")
        for body in bodies:
            values = _read_box(body)
            if isinstance(values, str):
                self._note(f"box [{_clip(body)}] {owner}: {values}")
            else:
                self._result.objects.append(LabeledBox(label or "", self._to_pixels(values)))

    def _to_pixels(self, values: list[int]) -> tuple[int, int, int, int]:
        pixels = (int(v / LARGEST_COORDINATE * self._size[i % 2]) for i, v in enumerate(values))
        left, top, right, bottom = pixels
        return left, top, right, bottom

    def _note(self, problem: str) -> None:
        self._result.problems.append(problem)


def _split_at_tags(text: str) -> list[tuple[str, str]]:
    tags = list(_TAG.finditer(text))
    starts = [0] + [tag.end() for tag in tags]
    ends = [tag.start() for tag in tags] + [len(text)]
    names = [""] + [tag.group() for tag in tags]
    return [(name, text[start:end]) for name, start, end in zip(names, starts, ends, strict=True)]


def _split_boxes(text: str) -> tuple[list[str], list[str]]:
    """``[[a], [b]]`` -> the text inside the inner brackets, and notes of what does not fit."""
    bodies, problems = [], []
    depth, body = 0, ""
    for token in _BRACKET_OR_TEXT.findall(text):
        if depth == 2 and token == "]":
            bodies.append(body)
            depth = 1
        elif depth == 2 and token == "[":
            problems.append(f"box [{_clip(body)} is not closed")
            body = ""
        elif depth == 2:
            body = token
        elif token == "[":
            depth, body = depth + 1, ""
        elif token == "]":
            problems += ["a ] too many"] if depth == 0 else []
            depth = max(depth - 1, 0)
        elif token.strip(_BETWEEN_BOXES):
            problems.append(f"{_short(token.strip(_BETWEEN_BOXES))} is not a box in brackets")
    if depth:
        problems.append(f"box [{_clip(body)} is cut off" if depth == 2 else "the list is not closed")
    if not bodies and not problems:
        problems.append("the list is empty")
    return bodies, problems


def _read_box(body: str) -> list[int] | str:
    """The four values, or what is wrong with them."""
    fields = [part.strip() for part in body.split(",")] if body.strip() else []
    if len(fields) != 4:
        return f"{len(fields)} value(s), not 4"
    for value in fields:
        if not _INTEGER.fullmatch(value):
            return f"{_short(value)} is not an integer"
        # By length first: Python refuses to convert thousands of digits.
        if len(value.lstrip("-0")) > 3 or not 0 <= int(value) <= LARGEST_COORDINATE:
            return f"{_clip(value)} is not in 0 to {LARGEST_COORDINATE}"
    left, top, right, bottom = values = [int(value) for value in fields]
    if left > right or top > bottom:
        return "its corners are the wrong way round"
    return values


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "..."


def _short(text: str) -> str:
    return repr(_clip(text))
