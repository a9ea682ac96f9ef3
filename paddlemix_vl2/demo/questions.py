"""Questions about a subject, asked only where there is exactly one right answer."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from paddlemix_vl2.demo import phrases
from paddlemix_vl2.demo.phrases import bare, definite, indefinite, translate
from paddlemix_vl2.demo.scenes import (
    Bar,
    Box,
    Chart,
    Pair,
    Scene,
    Size,
    Subject,
    TextCard,
    TextItem,
    Thing,
    pick,
)
from paddlemix_vl2.demo.vocabulary import COLORS, PLURALS, SHAPES
from paddlemix_vl2.processing.boxes import LARGEST_COORDINATE, format_boxes

CLOSED = ("colour", "shape", "count", "position")
READING = ("read", "read_number", "read_line")
KINDS = (
    "describe",
    *CLOSED,
    "ground",
    "grounded_describe",
    *READING,
    "chart_max",
    "chart_value",
    "compare",
)
# In no training task of the demo model: fine-tuning teaches them.
EXTRA_KINDS = ("other_language",)


@dataclass(frozen=True)
class SyntheticQuestion:
    """A question and its answer, without the pictures.

    Attributes:
        kind: one of ``KINDS`` or ``EXTRA_KINDS``.
        language: "en" or "zh".
        about: names the fact that is asked for; questions with the same one, in whatever words and language,
            have the same answer.
    """

    kind: str
    language: str
    prompt: str
    answer: str
    about: str = ""


def ask(rng: np.random.Generator, subject: Subject, kind: str, language: str) -> SyntheticQuestion | None:
    """A question of this kind; None where the subject has none with one right answer."""
    asker = _ASKERS[type(subject)].get(kind) or _EXTRA_ASKERS.get((type(subject), kind))
    found = asker(rng, subject, language) if asker else None
    if found is None:
        return None
    row, asked, answer, about = found
    prompt = pick(rng, phrases.PROMPTS[row][language]).format(asked)
    return SyntheticQuestion(kind, language, prompt, answer, f"{row} {about}")


def kinds_of(subject: type) -> tuple[str, ...]:
    """The kinds, not counting the extra ones, that may be asked about a type of subject."""
    return tuple(_ASKERS[subject])


def parts_of(subject: Scene | TextCard | Chart) -> tuple[Thing, ...] | tuple[TextItem, ...] | tuple[Bar, ...]:
    """What can be located in a picture, in reading order."""
    if isinstance(subject, Scene):
        return subject.things
    return subject.items if isinstance(subject, TextCard) else subject.bars


# Each asker returns (row of phrases.PROMPTS, the words for what is asked about, the answer, a name in no
# language for what is asked about) or None.
_Found = tuple[str, str, str, str] | None


# ---- any picture ----


def _describe(rng, subject: Subject, language: str) -> _Found:
    row = "describe_pair" if isinstance(subject, Pair) else "describe"
    return row, "", describe(subject, language), ""


def describe(subject: Subject, language: str) -> str:
    """All that a picture shows, in reading order, as a sentence."""
    english = language == "en"
    if isinstance(subject, TextCard):
        text = read_all(subject)
        return f'The picture says "{text}".' if english else f"图中写着“{text}”。"
    if isinstance(subject, Scene):
        clauses = [_describe_thing(thing, language) for thing in subject.things]
    elif isinstance(subject, Chart):
        link = " of " if english else "是"
        clauses = [f"{indefinite(bar, language)}{link}{bar.value}" for bar in subject.bars]
    else:
        first, second = (indefinite(scene.things[0], language) for scene in (subject.first, subject.second))
        clauses = [f"第一张图是{first}", f"第二张图是{second}"]
        if english:
            clauses = [f"the first picture shows {first}", f"the second picture shows {second}"]
    return phrases.sentence(clauses, language)


def _describe_thing(thing: Thing, language: str) -> str:
    name = indefinite(thing, language)
    if language == "zh":
        return f"{phrases.position_name(thing.cell, language)}是{name}"
    return f"{name} {phrases.place(thing.cell)}"


def _grounded_describe(rng, subject, language: str) -> _Found:
    return "grounded_describe", "", describe_with_boxes(subject, language), ""


def describe_with_boxes(subject: Scene | TextCard | Chart, language: str) -> str:
    """All parts of a picture with their boxes."""
    return ", ".join(
        located(indefinite(part, language), part.box, subject.size) for part in parts_of(subject)
    )


def _ground(rng, subject, language: str) -> _Found:
    part = pick(rng, parts_of(subject))
    name = definite(part, language)
    return "ground", name, located(name, part.box, subject.size), definite(part, "en")


def located(name: str, box: Box, size: Size) -> str:
    """A name with its box, in the form that ``processing.boxes`` reads.

    >>> located("the cat", (42, 0, 84, 21), (84, 84))
    '<|ref|>the cat<|/ref|><|det|>[[500, 0, 999, 250]]<|/det|>'
    """
    # Rounded up, since the reader rounds down to pixels: it finds the same pixel again.
    values = [ceil(value * LARGEST_COORDINATE / size[i % 2]) for i, value in enumerate(box)]
    return format_boxes(name, [values])


# ---- scenes ----


def _single(values: list[str]) -> list[str]:
    return [value for value in values if values.count(value) == 1]


def _color_of_thing(rng, scene: Scene, language: str) -> _Found:
    thing = pick(rng, scene.things)
    names = [f"{phrases.position_name(thing.cell, language)}的图形"]
    if language == "en":
        names = [f"shape {phrases.place(thing.cell)}"]
    if thing.shape in _single([other.shape for other in scene.things]):
        names.append(translate(thing.shape, language))
    if len(scene.things) == 1:
        names.append({"en": "shape in the picture", "zh": "图中的图形"}[language])
    return "colour", pick(rng, names), translate(thing.color, language), str(thing.cell)


def _shape_of_thing(rng, scene: Scene, language: str) -> _Found:
    thing = pick(rng, scene.things)
    names = [phrases.place(thing.cell) if language == "en" else phrases.position_name(thing.cell, language)]
    if thing.color in _single([other.color for other in scene.things]):
        names.append(translate(thing.color, language))
    if len(scene.things) == 1:
        names.append({"en": "in the picture", "zh": "图中"}[language])
    return "shape", pick(rng, names), translate(thing.shape, language), str(thing.cell)


def _position_of_thing(rng, scene: Scene, language: str) -> _Found:
    thing = pick(rng, scene.things)
    answer = phrases.position_name(thing.cell, language)
    return "position", definite(thing, language), answer, str(thing.cell)


def _count_things(rng, scene: Scene, language: str) -> _Found:
    shapes = [thing.shape for thing in scene.things]
    colors = [thing.color for thing in scene.things]
    kind = rng.random()
    if kind < 0.3:
        return "count", {"en": "shapes", "zh": "图形"}[language], str(len(scene.things)), "all"
    # Of a random thing rather than a random shape: else nearly every answer would be 1.
    present = rng.random() < 0.75
    if kind < 0.65:
        shape = pick(rng, shapes if present else list(SHAPES))
        asked = PLURALS[shape] if language == "en" else SHAPES[shape]
        return "count", asked, str(shapes.count(shape)), shape
    color = pick(rng, colors if present else list(COLORS))
    asked = f"{color} shapes" if language == "en" else f"{COLORS[color]}图形"
    return "count", asked, str(colors.count(color)), color


def _other_language(rng, scene: Scene, language: str) -> _Found:
    """A question in one language that is to be answered in the other."""
    asker = pick(rng, (_color_of_thing, _shape_of_thing, _position_of_thing))
    row, asked, answer, about = asker(rng, scene, language)
    inner = pick(rng, phrases.PROMPTS[row][language]).format(asked)
    return "other_language", inner, phrases.in_other_language(answer), f"{row} {about}"


# ---- cards with text ----


def read_all(card: TextCard) -> str:
    """Everything that is written, in reading order."""
    return ", ".join(item.text for item in card.items)


def _read(rng, card: TextCard, language: str) -> _Found:
    words = [item.text for item in card.items if not item.is_number]
    if len(words) == 1 and rng.random() < 0.5:
        return "read_word", "", words[0], ""
    return "read", "", read_all(card), ""


def _read_number(rng, card: TextCard, language: str) -> _Found:
    numbers = [item.text for item in card.items if item.is_number]
    return ("read_number", "", numbers[0], "") if len(numbers) == 1 else None


def _read_line(rng, card: TextCard, language: str) -> _Found:
    if len(card.items) < 2 or not card.has_lines:
        return None
    line = int(rng.integers(len(card.items)))
    return "read_line", phrases.ORDINALS[language][line], card.items[line].text, str(line)


def _color_of_text(rng, card: TextCard, language: str) -> _Found:
    item = pick(rng, card.items)
    return "colour", bare(item, language), translate(item.color, language), item.text


# ---- charts ----


def _chart_extreme(rng, chart: Chart, language: str) -> _Found:
    which = int(rng.integers(2))
    value = (max, min)[which](bar.value for bar in chart.bars)
    colors = [bar.color for bar in chart.bars if bar.value == value]
    if len(colors) != 1:
        return None
    return "chart_max", phrases.EXTREMES[language][which], translate(colors[0], language), str(which)


def _chart_value(rng, chart: Chart, language: str) -> _Found:
    bar = pick(rng, chart.bars)
    return "chart_value", definite(bar, language), str(bar.value), bar.color


def _count_bars(rng, chart: Chart, language: str) -> _Found:
    return "count", {"en": "bars", "zh": "柱"}[language], str(len(chart.bars)), "all"


# ---- pairs ----


def _compare(rng, pair: Pair, language: str) -> _Found:
    things = (pair.first.things[0], pair.second.things[0])
    which = int(rng.integers(2))
    aspect = ("shape", "color")[int(rng.integers(2))]
    names = [getattr(thing, aspect) for thing in things]
    kind = rng.random()
    if kind < 0.45:
        answer = phrases.YES_NO[language][names[0] != names[1]]
        return "compare_same", phrases.ASPECTS[language][aspect], answer, aspect
    ordinals = phrases.ORDINALS[language]
    if kind < 0.7:
        return "compare_what", ordinals[which], indefinite(things[which], language), str(which)
    if names[0] == names[1]:
        return None
    asked = translate(names[which], language)
    if aspect == "color":
        asked += {"en": " shape", "zh": "图形"}[language]
    return "compare_which", asked, ordinals[which] + ("张" if language == "zh" else ""), names[which]


_EVERYWHERE = {"describe": _describe, "ground": _ground, "grounded_describe": _grounded_describe}
_ASKERS = {
    Scene: {
        **_EVERYWHERE,
        "colour": _color_of_thing,
        "shape": _shape_of_thing,
        "position": _position_of_thing,
        "count": _count_things,
    },
    TextCard: {
        **_EVERYWHERE,
        "colour": _color_of_text,
        "read": _read,
        "read_number": _read_number,
        "read_line": _read_line,
    },
    Chart: {
        **_EVERYWHERE,
        "chart_max": _chart_extreme,
        "chart_value": _chart_value,
        "count": _count_bars,
    },
    Pair: {"compare": _compare, "describe": _describe},
}
_EXTRA_ASKERS = {(Scene, "other_language"): _other_language}
