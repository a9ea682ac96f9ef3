"""Conversations about synthetic pictures: ``make_sample(task, split, index)``.

Whether a picture belongs to the split "train" or "test" is decided by what it shows, so no picture of one
split can occur in the other.
"""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from PIL import Image

from paddlemix_vl2.demo import scenes
from paddlemix_vl2.demo.questions import (
    EXTRA_KINDS,
    KINDS,
    READING,
    SyntheticQuestion,
    ask,
    describe,
    describe_with_boxes,
    kinds_of,
    parts_of,
)
from paddlemix_vl2.demo.rendering import render_all
from paddlemix_vl2.demo.scenes import TILE, Chart, Pair, Scene, Subject, TextCard, pick, pick_weighted
from paddlemix_vl2.demo.vocabulary import LANGUAGES
from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, IMAGE_TOKEN, USER_TOKEN

SPLITS = ("train", "test")
SUBJECTS: dict[str, Callable[[np.random.Generator], Subject]] = {
    "scene": scenes.make_scene,
    "text": scenes.make_card,
    "chart": scenes.make_chart,
    "compare": scenes.make_pair,
}
TASKS = (*SUBJECTS, "words", "mixed", "caption")
# Not among TASKS: the demo model's vocabulary is made from those, in their order.
EXTRA_TASKS = ("simple", "grid", "color_grid", "closed", "locate", "ink", "other_language")

_MIXED = {"scene": 0.45, "text": 0.30, "chart": 0.10, "compare": 0.15}
# extra kind -> what its pictures show
_EXTRA_SUBJECTS = {"other_language": "scene"}
# task -> what makes its pictures, kinds of questions and how often each is asked
_PRACTICE = {
    "grid": (scenes.make_grid, {"describe": 4, "colour": 2, "shape": 2, "position": 2, "ground": 0.4}),
    "color_grid": (scenes.make_color_grid, {"colour": 4, "describe": 1, "position": 2}),
    # Boxes and sentences are four fifths of the tokens of scenes' answers; here are short answers only, and
    # two in five are about what is learned last: colours.
    "closed": (scenes.make_scene, {"colour": 2, "shape": 1, "count": 1, "position": 1}),
    "locate": (scenes.make_scene, {"position": 3, "ground": 1}),
    "ink": (scenes.make_long_card, {"colour": 3, "read": 1, "read_number": 1, "read_line": 1}),
    "other_language": (scenes.make_scene, {"other_language": 1}),
}
_TYPES = {"scene": Scene, "text": TextCard, "chart": Chart, "compare": Pair}
# A box is some twenty-five tokens, most answers are one to three: what has boxes would be most of the loss.
_WEIGHTS = {
    Scene: {
        "describe": 1,
        "grounded_describe": 0.4,
        "colour": 2,
        "shape": 2.5,
        "position": 2,
        "count": 1.5,
        "ground": 1.5,
    },
    TextCard: {
        "describe": 0.5,
        "grounded_describe": 0.3,
        "read": 3,
        "read_number": 2,
        "read_line": 2,
        "colour": 2,
        "ground": 1,
    },
    Chart: {
        "describe": 1,
        "grounded_describe": 0.2,
        "chart_max": 2,
        "chart_value": 3,
        "count": 1,
        "ground": 0.7,
    },
    Pair: {"compare": 6, "describe": 1},
}
_TURNS = {Scene: (4, 7), TextCard: (2, 5), Chart: (3, 6), Pair: (3, 5)}
# These describe the whole picture: at most one of them in a conversation.
_LISTS = ("describe", "grounded_describe")
_ONE_IN_TEST = 8
_TRIES = 40


def make_sample(task: str, split: str, index: int) -> dict:
    """A training conversation, always the same for the same arguments.

    Args:
        task: "scene", "text", "chart", "compare": questions about such pictures; "mixed": one of these;
            "caption": all kinds of pictures, one turn that describes everything; "simple": the same of a
            single thing or text; "words": a text describes what a picture would show; "grid": scenes of many
            small things; "color_grid": the same, different in colour only; "closed": scenes, asked for
            colour, shape, count and position only; "locate": where things of a scene are;
            "ink": cards of several words, mostly asked for their colours; "other_language": questions that
            are to be answered in the other language.
        split: "train" or "test".

    Returns:
        ``{"messages": [...]}`` as :meth:`paddlemix_vl2.processing.conversation.Conversation.parse` takes
        them, with PIL pictures.

    Raises:
        ValueError: unknown task or split.
    """
    if task not in (*TASKS, *EXTRA_TASKS) or split not in SPLITS:
        raise ValueError(f"no task {task!r} of split {split!r}; tasks: {', '.join((*TASKS, *EXTRA_TASKS))}")
    rng = _generator(task, split, index)
    if task == "simple":
        return _make_simple(rng, split)
    if task in _PRACTICE:
        make, weights = _PRACTICE[task]
        subject = _make_of_split(rng, make, split)
        turns = _ask_turns(rng, subject, weights=weights)
        return {"messages": _messages(turns, render_all(subject))}
    name = task if task in SUBJECTS else pick_weighted(rng, _MIXED)
    subject = _make_subject(rng, name, split)
    if task == "words":
        return {"messages": _tell(rng, subject)}
    turns = [_ask_for_all(rng, subject)] if task == "caption" else _ask_turns(rng, subject)
    return {"messages": _messages(turns, render_all(subject))}


def _make_simple(rng: np.random.Generator, split: str) -> dict:
    """One thing, or one word or number, on a picture of one tile: a turn that names it, sometimes another
    that locates it."""
    name, kind = ("scene", "describe") if rng.random() < 0.4 else ("text", "read")
    while True:
        subject = _make_subject(rng, name, split)
        if subject.size == (TILE, TILE) and len(parts_of(subject)) == 1:
            kinds = [kind, "ground"] if name == "scene" and rng.random() < 0.3 else [kind]
            turns = [ask(rng, subject, kind, pick(rng, LANGUAGES)) for kind in kinds]
            return {"messages": _messages(turns, render_all(subject))}


def make_question(
    kind: str, split: str, index: int, language: str
) -> tuple[list[Image.Image], SyntheticQuestion]:
    """One question of a kind with its pictures, for evaluation; always the same for the same arguments.

    Raises:
        ValueError: unknown kind, split or language.
    """
    kinds = (*KINDS, *EXTRA_KINDS)
    if kind not in kinds or split not in SPLITS or language not in LANGUAGES:
        raise ValueError(f"no kind {kind!r} of split {split!r} in {language!r}; kinds: {', '.join(kinds)}")
    rng = _generator("question", kind, split, index, language)
    if kind in EXTRA_KINDS:
        weights = {_EXTRA_SUBJECTS[kind]: 1.0}
    else:
        weights = {name: _MIXED[name] for name, type_ in _TYPES.items() if kind in kinds_of(type_)}
    question = None
    while question is None:
        subject = _make_subject(rng, pick_weighted(rng, weights), split)
        question = ask(rng, subject, kind, language)
    return render_all(subject), question


def prompt_messages(images: list[Image.Image], question: SyntheticQuestion) -> list[dict]:
    """A question as a conversation that the model is to continue."""
    return _messages([question], images)[:1]


def _generator(*names) -> np.random.Generator:
    """Depends on the names only, in every process: Python's ``hash`` does not."""
    digest = hashlib.sha256("|".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _make_subject(rng: np.random.Generator, name: str, split: str) -> Subject:
    return _make_of_split(rng, SUBJECTS[name], split)


def _make_of_split(rng: np.random.Generator, make: Callable, split: str) -> Subject:
    while True:
        subject = make(rng)
        if split_of(subject) == split:
            return subject


def split_of(subject: Subject) -> str:
    """The split to which a subject belongs, by what it shows."""
    parts = [subject.first, subject.second] if isinstance(subject, Pair) else [subject]
    shown = [{key: value for key, value in asdict(part).items() if key != "grain"} for part in parts]
    return "train" if zlib.crc32(repr(shown).encode()) % _ONE_IN_TEST else "test"


def _ask_turns(
    rng: np.random.Generator,
    subject: Subject,
    left_out: tuple[str, ...] = (),
    weights: dict[str, float] | None = None,
) -> list[SyntheticQuestion]:
    """Questions about different facts, in random order within :func:`_rank`; of the kinds in ``weights``, or
    of the usual ones of such a subject."""
    weights = weights or _WEIGHTS[type(subject)]
    weights = {kind: weight for kind, weight in weights.items() if kind not in left_out}
    low, high = _TURNS[type(subject)]
    count = int(rng.integers(low, high + 1))
    turns: list[SyntheticQuestion] = []
    for _ in range(_TRIES):
        question = ask(rng, subject, pick_weighted(rng, weights), pick(rng, LANGUAGES))
        if question is not None and not _is_told(question, turns):
            turns.append(question)
        if len(turns) == count:
            break
    return sorted(turns, key=_rank) if rng.random() < 0.8 else turns


def _rank(question: SyntheticQuestion) -> int:
    """Reading first, since other questions about text name it; what describes everything last: behind its
    answer the picture is not needed any more."""
    return 2 if question.kind in _LISTS else int(question.kind not in READING)


def _is_told(question: SyntheticQuestion, turns: list[SyntheticQuestion]) -> bool:
    """Whether an earlier turn gave the answer away: it could be copied from there."""
    if question.kind in _LISTS:
        return any(other.kind in _LISTS for other in turns)
    if question.kind in READING:
        return question.answer in [other.answer for other in turns]
    return question.about in [other.about for other in turns]


def _ask_for_all(rng: np.random.Generator, subject: Subject) -> SyntheticQuestion:
    weights = {"describe": 0.6, "grounded_describe": 0.4, "read": 0.8}
    weights = {kind: weight for kind, weight in weights.items() if kind in kinds_of(type(subject))}
    return ask(rng, subject, pick_weighted(rng, weights), pick(rng, LANGUAGES))


def _tell(rng: np.random.Generator, subject: Subject) -> list[dict]:
    """A conversation in which the user says what the picture shows."""
    language = pick(rng, LANGUAGES)
    if isinstance(subject, Pair) or rng.random() < 0.6:
        told, left_out = describe(subject, language), ("ground", "grounded_describe")
    else:
        told, left_out = describe_with_boxes(subject, language), ()
    # Neither description has the colour of what is written, and the first not its line; a chart's values do
    # not follow from a description with boxes.
    if isinstance(subject, TextCard):
        left_out += ("colour", "read_line")
    turns = _ask_turns(rng, subject, left_out)
    messages = _messages(turns, [])
    messages[0]["content"] = f"{told}\n{messages[0]['content']}"
    return messages


def _messages(turns: list[SyntheticQuestion], images: list[Image.Image]) -> list[dict]:
    messages = []
    for question in turns:
        messages.append({"role": USER_TOKEN, "content": question.prompt})
        messages.append({"role": ASSISTANT_TOKEN, "content": question.answer})
    if images:
        messages[0]["content"] = f"{IMAGE_TOKEN}\n" * len(images) + messages[0]["content"]
        messages[0]["images"] = images
    return messages
