"""Scores of single answers, from 0 to 1: pure functions of what the model said and what is right.

``answers`` are the right ones of a question, at least one; the best match counts, but for VQA accuracy, where
they are the votes of several persons.
"""

import math
import re
from collections.abc import Sequence

from paddlemix_vl2.evaluation.vqa_answers import normalize_vqa_answer
from paddlemix_vl2.processing.boxes import MIN_IOU, box_iou, parse_boxes

ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05
FULL_AGREEMENT = 3  # as many persons must have given an answer for it to count in full

Corners = tuple[float, float, float, float]


def exact_match(answer: str, answers: Sequence[str]) -> float:
    """1 where the answer is a right one, but for upper and lower case and white space.

    >>> exact_match(" Two  dogs", ["two dogs"])
    1.0
    """
    return float(_plain(answer) in map(_plain, answers))


def anls(answer: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity (DocVQA, InfoVQA), of one question.

    ``1 - distance / length of the longer``, upper and lower case and white space aside; 0 below the threshold
    of 0.5, as the evaluation server has it: exactly 0.5 counts.

    >>> anls("tets", ["test"]), anls("t", ["test"])
    (0.5, 0.0)
    """
    return max(_similarity(_plain(answer), _plain(right)) for right in answers)


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    similarity = 1 - edit_distance(a, b) / longer if longer else 1.0
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def edit_distance(a: str, b: str) -> int:
    """Fewest characters to insert, delete or replace to make ``b`` of ``a``.

    >>> edit_distance("kitten", "sitting")
    3
    """
    above = list(range(len(b) + 1))
    for row, left in enumerate(a, start=1):
        current = [row]
        for column, right in enumerate(b, start=1):
            replaced = above[column - 1] + (left != right)
            current.append(min(replaced, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


def relaxed_accuracy(answer: str, answers: Sequence[str]) -> float:
    """ChartQA: a number may be off by 5 % of the right one, anything else must be the same text.

    "12 %" is the number 0.12, so that "12" is not "12 %". Thousands separators and units make a text of a
    number. A right answer of 0 has no 5 %: it must be said as it is written.

    >>> relaxed_accuracy("104", ["100"]), relaxed_accuracy("106", ["100"]), relaxed_accuracy("Red", ["red"])
    (1.0, 0.0, 1.0)
    """
    return max(float(_is_close(answer.strip(), right.strip())) for right in answers)


def _is_close(answer: str, right: str) -> bool:
    said, value = _number(answer), _number(right)
    if said is None or not value:
        return answer.lower() == right.lower()
    return abs(said - value) / abs(value) <= RELATIVE_TOLERANCE


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """VQA accuracy (TextVQA): agreement with what several persons answered, ten as a rule.

    For each person, how many of the others gave this answer, a third for each, at most 1; the mean of it over
    the persons. Answers are compared as :func:`normalize_vqa_answer` writes them.

    >>> vqa_accuracy("two", ["2"] * 3 + ["3"] * 7)  # 2 of 3 for three persons, 1 for seven
    0.9
    """
    said = normalize_vqa_answer(answer)
    matches = [normalize_vqa_answer(right) == said for right in answers]
    agreed = [min((sum(matches) - own) / FULL_AGREEMENT, 1.0) for own in matches]
    return sum(agreed) / len(agreed)


def ocrbench_hit(answer: str, answers: Sequence[str], category: str = "") -> float:
    """OCRBench: 1 where the answer contains a right one.

    Upper and lower case do not count and line breaks are spaces; of handwritten formulas ("Handwritten
    Mathematical Expression Recognition", "HME100k") it is spaces that do not count.

    >>> ocrbench_hit("It says CENTRE.", ["centre"]), ocrbench_hit("x ^ 2", ["x^2"], "HME100k")
    (1.0, 1.0)
    """
    is_formula = "mathematical expression" in category.lower() or category.lower() == "hme100k"
    write = _without_spaces if is_formula else _lower_line
    return float(any(write(right) in write(answer) for right in answers))


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")


def _lower_line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def choice_accuracy(answer: str, answers: Sequence[str], options: dict[str, str]) -> float:
    """Multiple choice: 1 where the letter that the answer chooses is right; no letter is wrong.

    >>> choice_accuracy("(B) a cat", ["B"], {"A": "a dog", "B": "a cat"})
    1.0
    """
    return float(chosen_letter(answer, options) in answers)


def chosen_letter(answer: str, options: dict[str, str]) -> str | None:
    """The letter of the option that an answer chooses. The first rule that fits decides:

    1. The answer is the text of one option, but for upper and lower case and a full stop.
    2. It begins with a letter that is alone or before ``.``, ``)``, ``:`` or ``,``, perhaps in brackets
       or bold: "B", "(B)", "b.", "**B**: a cat".
    3. It says "answer is B", "answer: B", "option B" or "choice B"; the last of these counts.
    4. One letter and no other is alone somewhere in it, in upper case. "A" or "I" with a word behind it
       is no letter, unless the word is "or", "and" or "is".
    5. It contains the text of one option and of no other.

    >>> chosen_letter("The answer is C, not A.", {"A": "one", "B": "two", "C": "three"})
    'C'
    """
    text = answer.strip()
    letters = "".join(options)
    texts = {letter: _plain(option) for letter, option in options.items() if option}
    same = [letter for letter, option in texts.items() if option == _plain(text).rstrip(".")]
    if len(same) == 1:
        return same[0]
    first = re.match(rf"[(\[*]*([{letters}{letters.lower()}])(?:[)\].:,*]+(?!\w)|[ \t]*(?:\n|$))", text)
    if first:
        return first[1].upper()
    said = re.findall(rf"(?i:\b(?:answer|option|choice)(?:\s+is)?\s*:?)\s*[(\[*]*([{letters}])\b(?!')", text)
    if said:
        return said[-1]
    alone = set(re.findall(rf"(?<![\w'])(?![AI]\s+(?!(?:or|and|is)\b)\w)([{letters}])(?![\w'])", text))
    if len(alone) == 1:
        return alone.pop()
    named = [letter for letter, option in texts.items() if _stands_in(option, _plain(text))]
    return named[0] if len(named) == 1 else None


def _stands_in(part: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def box_hit(answer: str, box: Corners, size: tuple[int, int]) -> float:
    """RefCOCO: 1 where the first box of the answer overlaps the right one by half, intersection over union.

    Args:
        answer: with its special tokens; coordinates from 0 to 999.
        box: left, top, right, bottom in pixels.
        size: width and height of the picture in pixels.

    >>> box_hit("<|ref|>a<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>", (0, 0, 100, 60), (100, 100))
    1.0
    """
    found = parse_boxes(answer, size).objects
    return float(bool(found) and box_iou(found[0].box, box) >= MIN_IOU)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
