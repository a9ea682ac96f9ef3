import json

import pytest

from paddlemix_vl2.demo.questions import SyntheticQuestion
from paddlemix_vl2.demo.scoring import ScoreTable, is_right

COLOUR = SyntheticQuestion("colour", "en", "What colour is the circle?", "red")
BOX = "<|ref|>the star<|/ref|><|det|>[[{}]]<|/det|>"
GROUND = SyntheticQuestion("ground", "en", "<|ref|>the star<|/ref|>.", BOX.format("100, 100, 300, 300"))
TWO = "<|ref|>a star<|/ref|><|det|>[[0, 0, 200, 200]]<|/det|>, <|ref|>a cross<|/ref|><|det|>[[{}]]<|/det|>"
LIST = SyntheticQuestion("grounded_describe", "en", "<|grounding|>", TWO.format("500, 500, 700, 700"))


@pytest.mark.parametrize(
    ("answer", "right"),
    [("red", True), (" red\n", True), ("Red", False), ("red.", False), ("", False), ("red red", False)],
)
def test_closed_questions_are_to_be_answered_exactly(answer, right):
    assert is_right(COLOUR, answer) is right


@pytest.mark.parametrize(
    ("numbers", "right"),
    [
        ("100, 100, 300, 300", True),
        ("110, 95, 310, 290", True),
        ("100, 100, 300, 200", True),  # one half, exactly
        ("100, 100, 300, 199", False),
        ("200, 200, 400, 400", False),
        ("400, 400, 600, 600", False),
        ("100, 100, 300", False),
        ("300, 300, 100, 100", False),
        ("100, 100, 300, 300], [100, 100, 300, 300", False),
    ],
)
def test_a_box_is_right_when_it_overlaps_by_half(numbers, right):
    assert is_right(GROUND, BOX.format(numbers)) is right


def test_a_place_in_words_is_no_box():
    assert not is_right(GROUND, "top left")
    assert not is_right(GROUND, "")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (TWO.format("500, 500, 700, 700"), True),
        (TWO.format("520, 500, 700, 690"), True),
        (TWO.format("0, 0, 200, 200"), False),
        (TWO.format("500, 500, 700, 700").replace("cross", "circle"), False),
        (TWO.format("500, 500, 700, 700").split(", <|ref|>")[0], False),
    ],
)
def test_a_list_of_boxes_is_right_when_names_and_boxes_are(answer, right):
    assert is_right(LIST, answer) is right


def table_of(*rows):
    table = ScoreTable()
    for kind, language, right in rows:
        table.add(SyntheticQuestion(kind, language, "?", "!"), right)
    return table


def test_a_table_counts():
    table = table_of(
        ("colour", "en", True), ("colour", "en", False), ("colour", "zh", True), ("ground", "en", False)
    )
    assert table.counts() == (2, 4)
    assert table.counts(["colour"]) == (2, 3) and table.counts(["colour"], ["en"]) == (1, 2)
    assert table.rate(["ground"]) == 0 and table.rate(["read"]) is None
    assert table.kinds == ("colour", "ground")
    assert table.to_markdown().splitlines() == [
        "| question | en | zh | both |",
        "| --- | ---: | ---: | ---: |",
        "| colour | 50 % (1/2) | 100 % (1/1) | 67 % (2/3) |",
        "| ground | 0 % (0/1) | - | 0 % (0/1) |",
        "| closed questions | 50 % (1/2) | 100 % (1/1) | 67 % (2/3) |",
        "| reading | - | - | - |",
        "| grounding | 0 % (0/1) | - | 0 % (0/1) |",
        "| all | 33 % (1/3) | 100 % (1/1) | 50 % (2/4) |",
    ]


def test_a_table_as_json():
    values = table_of(("shape", "zh", True), ("shape", "zh", False), ("read", "en", True)).to_dict()
    assert json.loads(json.dumps(values)) == {
        "kinds": {"shape": {"zh": {"right": 1, "total": 2}}, "read": {"en": {"right": 1, "total": 1}}},
        "groups": {"closed questions": 0.5, "reading": 1.0, "grounding": None, "all": pytest.approx(2 / 3)},
    }


def test_an_empty_table():
    assert ScoreTable().rate() is None
    assert ScoreTable().to_markdown().splitlines()[-1] == "| all | - | - | - |"
