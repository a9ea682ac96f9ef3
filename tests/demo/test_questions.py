"""Answers checked against pictures described by hand, and counted again."""

import re

import numpy as np
import pytest

from paddlemix_vl2.demo import scenes
from paddlemix_vl2.demo.questions import KINDS, ask, describe, describe_with_boxes, kinds_of
from paddlemix_vl2.demo.scenes import Bar, Chart, Pair, Scene, TextCard, TextItem, Thing
from paddlemix_vl2.demo.vocabulary import COLORS, PLURALS, POSITIONS, SHAPES
from paddlemix_vl2.processing.boxes import parse_boxes

WHITE = (255, 255, 255)
RED_CIRCLE = Thing("circle", "red", 0, (4, 4, 40, 40))
BLUE_STAR = Thing("star", "blue", 4, (64, 64, 100, 100))
ORANGE_STAR = Thing("star", "orange", 8, (120, 120, 160, 160))
SCENE = Scene((168, 168), WHITE, (RED_CIRCLE, BLUE_STAR, ORANGE_STAR), 1)
LONE = Scene((84, 84), WHITE, (Thing("cross", "orange", 5, (50, 30, 80, 60)),), 1)
ITEMS = (
    TextItem("apple", "red", "DejaVuSans.ttf", 24, (10, 10, 70, 30)),
    TextItem("42", "blue", "DejaVuSans.ttf", 24, (30, 50, 60, 70)),
)
CARD = TextCard((84, 84), WHITE, ITEMS, 1)
CHART = Chart(
    (84, 84), WHITE, (Bar("red", 7, (10, 22, 30, 78)), Bar("orange", 3, (50, 54, 70, 78))), 78, 8, 1
)
PAIR = Pair(LONE, Scene((84, 84), WHITE, (Thing("cross", "blue", 0, (5, 5, 35, 35)),), 1))


def ask_often(subject, kind, language, times=300):
    """All (prompt, answer) that come."""
    rng = np.random.default_rng(0)
    questions = [ask(rng, subject, kind, language) for _ in range(times)]
    return {(question.prompt, question.answer) for question in questions if question is not None}


def fill(templates, answers):
    return {(template.format(asked), answer) for asked, answer in answers.items() for template in templates}


COLOUR = ("What colour is the {}?", "Which colour is the {}?")
SHAPE = ("What shape is {}?", "Which shape is {}?")
WHERE = ("Where is the {}?", "In which part of the picture is the {}?")
COUNT = ("How many {} are there?", "Count the {}.")
NO_SHAPES = {plural: "0" for plural in PLURALS.values()}
NO_COLORS = {f"{color} shapes": "0" for color in COLORS}
ALL_QUESTIONS = [
    (
        SCENE,
        "colour",
        COLOUR,
        {
            "circle": "red",
            "shape at the top left": "red",
            "shape in the centre": "blue",
            "shape at the bottom right": "orange",
        },
    ),
    (
        SCENE,
        "shape",
        SHAPE,
        {
            "red": "circle",
            "blue": "star",
            "orange": "star",
            "at the top left": "circle",
            "in the centre": "star",
            "at the bottom right": "star",
        },
    ),
    (
        SCENE,
        "position",
        WHERE,
        {"red circle": "top left", "blue star": "centre", "orange star": "bottom right"},
    ),
    (
        SCENE,
        "count",
        COUNT,
        {
            "shapes": "3",
            **NO_SHAPES,
            "circles": "1",
            "stars": "2",
            **NO_COLORS,
            "red shapes": "1",
            "blue shapes": "1",
            "orange shapes": "1",
        },
    ),
    (
        LONE,
        "colour",
        COLOUR,
        {"cross": "orange", "shape on the right": "orange", "shape in the picture": "orange"},
    ),
    (LONE, "shape", SHAPE, {"orange": "cross", "on the right": "cross", "in the picture": "cross"}),
    (CARD, "colour", COLOUR, {"word apple": "red", "number 42": "blue"}),
    (
        CARD,
        "read_line",
        ("Read the {} line.", "What does the {} line say?"),
        {"first": "apple", "second": "42"},
    ),
    (CARD, "read_number", ("Which number is in the picture?", "Read the number."), {"": "42"}),
    (
        CHART,
        "chart_max",
        ("Which bar is the {}?", "What colour is the {} bar?"),
        {"tallest": "red", "shortest": "orange"},
    ),
    (
        CHART,
        "chart_value",
        ("What is the value of the {} bar?", "How tall is the {} bar?"),
        {"red": "7", "orange": "3"},
    ),
    (CHART, "count", COUNT, {"bars": "2"}),
]


@pytest.mark.parametrize(("subject", "kind", "templates", "answers"), ALL_QUESTIONS)
def test_all_questions_of_a_kind_and_their_answers(subject, kind, templates, answers):
    assert ask_often(subject, kind, "en", 800) == fill(templates, answers)


def test_reading():
    assert ask_often(CARD, "read", "en") == {
        ("What does the picture say?", "apple, 42"),
        ("Read the text.", "apple, 42"),
        ("Which word is in the picture?", "apple"),
        ("Read the word.", "apple"),
    }


def test_comparing():
    expected = {
        *fill(("Do the two pictures show the same {}?",), {"shape": "yes", "colour": "no"}),
        *fill(("Is the {} the same in both pictures?",), {"shape": "yes", "colour": "no"}),
        *fill(
            ("Which picture shows the {}?", "In which picture is the {}?"),
            {"orange shape": "first", "blue shape": "second"},
        ),
        *fill(
            ("What is in the {} picture?", "What does the {} picture show?"),
            {"first": "an orange cross", "second": "a blue cross"},
        ),
    }
    assert ask_often(PAIR, "compare", "en", 800) == expected


def test_chinese():
    assert ask_often(SCENE, "position", "zh") >= {
        ("红色圆形在哪里？", "左上"),
        ("蓝色五角星在图中什么位置？", "中央"),
    }
    assert ask_often(SCENE, "colour", "zh") >= {
        ("圆形是什么颜色？", "红色"),
        ("中央的图形的颜色是什么？", "蓝色"),
    }
    assert ask_often(SCENE, "shape", "zh") >= {
        ("红色的图形是什么形状？", "圆形"),
        ("右下的是什么图形？", "五角星"),
    }
    assert ask_often(SCENE, "count", "zh") >= {("有几个五角星？", "2"), ("数一数绿色图形。", "0")}
    assert ask_often(CARD, "read_line", "zh") >= {("读出第二行。", "42"), ("第一行写着什么？", "apple")}
    assert ask_often(CHART, "chart_max", "zh") >= {("哪根柱最高？", "红色"), ("最矮的柱是什么颜色？", "橙色")}
    assert ask_often(CHART, "chart_value", "zh") >= {("红色柱有多高？", "7")}
    assert ask_often(PAIR, "compare", "zh", 800) >= {
        ("两张图的形状相同吗？", "相同"),
        ("两张图是同样的颜色吗？", "不同"),
        ("哪张图有蓝色图形？", "第二张"),
        ("第一张图里是什么？", "橙色十字"),
    }


def test_descriptions():
    assert describe(SCENE, "en") == (
        "A red circle at the top left, a blue star in the centre, an orange star at the bottom right."
    )
    assert describe(SCENE, "zh") == "左上是红色圆形，中央是蓝色五角星，右下是橙色五角星。"
    assert describe(CARD, "en") == 'The picture says "apple, 42".'
    assert describe(CARD, "zh") == "图中写着“apple, 42”。"
    assert describe(CHART, "en") == "A red bar of 7, an orange bar of 3."
    assert describe(CHART, "zh") == "红色柱是7，橙色柱是3。"
    assert describe(PAIR, "en") == (
        "The first picture shows an orange cross, the second picture shows a blue cross."
    )
    assert describe(PAIR, "zh") == "第一张图是橙色十字，第二张图是蓝色十字。"


def test_boxes_in_answers():
    assert ask_often(SCENE, "ground", "en") >= {
        (
            "Locate <|ref|>the red circle<|/ref|> in the given image.",
            "<|ref|>the red circle<|/ref|><|det|>[[24, 24, 238, 238]]<|/det|>",
        ),
        (
            "<|ref|>the red circle<|/ref|>.",
            "<|ref|>the red circle<|/ref|><|det|>[[24, 24, 238, 238]]<|/det|>",
        ),
    }
    assert describe_with_boxes(CARD, "en") == (
        "<|ref|>the word apple<|/ref|><|det|>[[119, 119, 833, 357]]<|/det|>, "
        "<|ref|>the number 42<|/ref|><|det|>[[357, 595, 714, 833]]<|/det|>"
    )
    assert describe_with_boxes(LONE, "zh").startswith("<|ref|>橙色十字<|/ref|><|det|>[[595, 357, ")


@pytest.mark.parametrize("maker", [scenes.make_scene, scenes.make_card, scenes.make_chart])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_boxes_are_read_back_to_the_pixel(rng, maker, language):
    for _ in range(100):
        subject = maker(rng)
        parts = getattr(subject, {Scene: "things", TextCard: "items", Chart: "bars"}[type(subject)])
        found = parse_boxes(ask(rng, subject, "grounded_describe", language).answer, subject.size)
        assert found.problems == []
        for part, found_object in zip(parts, found.objects, strict=True):
            assert np.abs(np.subtract(found_object.box, part.box)).max() <= 1
        assert np.mean([o.box == part.box for part, o in zip(parts, found.objects, strict=True)]) > 0.9
        located = ask(rng, subject, "ground", language)
        assert len(parse_boxes(located.answer, subject.size).objects) == 1
        assert re.search(r"<\|ref\|>.*?<\|/ref\|>", located.prompt).group() in located.answer


def test_random_scenes_are_counted_right(rng):
    """From the boxes and names of the things alone, with the words of the question read back."""
    singular = {plural: shape for shape, plural in PLURALS.items()}
    for _ in range(300):
        scene = scenes.make_scene(rng)
        question = ask(rng, scene, "count", "en")
        asked = re.fullmatch(r"(?:How many|Count the) (.*?)(?: are there\?|\.)", question.prompt).group(1)
        if asked in singular:
            matching = [thing for thing in scene.things if thing.shape == singular[asked]]
        else:
            color = asked.removesuffix("shapes").strip()
            matching = [thing for thing in scene.things if thing.color == color or not color]
        assert question.answer == str(len(matching))
        question = ask(rng, scene, "position", "en")
        color, shape = re.search(r"the (\w+) (\w+)\?", question.prompt).groups()
        (thing,) = [thing for thing in scene.things if (thing.color, thing.shape) == (color, shape)]
        column, row = (int((thing.box[i] + thing.box[i + 2]) / 2 * 3 / scene.size[i]) for i in (0, 1))
        assert question.answer == list(POSITIONS)[3 * row + column]


@pytest.mark.parametrize("maker", [scenes.make_scene, scenes.make_card, scenes.make_chart, scenes.make_pair])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_question_has_one_answer_and_a_fact_one_too(rng, maker, language):
    for _ in range(20):
        subject = maker(rng)
        answers, facts = {}, {}
        for kind in kinds_of(type(subject)):
            for _ in range(30):
                question = ask(rng, subject, kind, language)
                if question is None:
                    continue
                assert (question.kind, question.language) == (kind, language)
                assert "{" not in question.prompt and question.prompt and question.answer
                assert answers.setdefault(question.prompt, question.answer) == question.answer
                assert facts.setdefault(question.about, question.answer) == question.answer


def test_nothing_ambiguous_is_asked():
    prompts = {prompt for prompt, _ in ask_often(SCENE, "colour", "en", 800)}
    assert not any("star" in prompt for prompt in prompts), "there are two stars"
    twice = TextCard(
        (84, 84), WHITE, (ITEMS[1], TextItem("7", "red", "DejaVuSans.ttf", 24, (5, 72, 9, 80))), 1
    )
    assert ask_often(twice, "read_number", "en") == set()
    beside = TextCard((168, 84), WHITE, (ITEMS[0], TextItem("7", "red", "x", 24, (90, 12, 99, 28))), 1)
    assert ask_often(beside, "read_line", "en") == set()
    assert ask_often(SCENE, "read", "en") == set()


def test_all_kinds_can_be_asked_of_something():
    kinds = {kind for subject in (Scene, TextCard, Chart, Pair) for kind in kinds_of(subject)}
    assert kinds == set(KINDS)
    assert len(SHAPES) == len(PLURALS) == 5
