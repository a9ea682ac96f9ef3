"""The grammar of boxes: what is good is read, what is not is noted, nothing raises."""

import random
import time

import pytest

from paddlemix_vl2.processing.boxes import LabeledBox, box_iou, parse_boxes

SIZE = (999, 999)  # pixels are the coordinates themselves
GOOD = "<|ref|>a dog<|/ref|><|det|>[[10, 20, 30, 40]]<|/det|>"


def boxes(text, size=SIZE):
    return [(item.label, item.box) for item in parse_boxes(text, size).objects]


def test_labels_and_boxes_are_read_in_order():
    text = (
        "In the picture <|ref|>a dog<|/ref|><|det|>[[10, 20, 30, 40]]<|/det|> chases "
        "<|ref|>two cats<|/ref|><|det|>[[1, 2, 3, 4], [5,6,7,8]]<|/det|>."
    )
    result = parse_boxes(text, SIZE)
    assert result.problems == []
    assert result.objects == [
        LabeledBox("a dog", (10, 20, 30, 40)),
        LabeledBox("two cats", (1, 2, 3, 4)),
        LabeledBox("two cats", (5, 6, 7, 8)),
    ]


def test_text_without_boxes_has_none():
    for text in ("", "no boxes here [1, 2] <|User|>", "[[1, 2, 3, 4]]", "a < b |> c <ref>x</ref>"):
        result = parse_boxes(text, SIZE)
        assert (result.objects, result.problems) == ([], [])


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        ((0, 0, 999, 999), (640, 480), (0, 0, 640, 480)),
        ((122, 310, 480, 998), (1920, 1080), (234, 335, 922, 1078)),
        ((1, 1, 2, 2), (1, 1), (0, 0, 0, 0)),
        ((500, 500, 500, 500), (100, 7), (50, 3, 50, 3)),
        ((333, 666, 999, 999), (20000, 3), (6666, 2, 20000, 3)),
    ],
)
def test_pixels_are_rounded_down_parts_of_the_size(values, size, expected):
    """Worked by hand: int(value / 999 * size), for x with the width and for y with the height."""
    assert boxes(f"<|ref|>x<|/ref|><|det|>[{list(values)}]<|/det|>", size) == [("x", expected)]


@pytest.mark.parametrize(
    "text",
    [
        "<|ref|>a dog<|/ref|><|det|>[[10,20,30,40]]<|/det|>",
        "<|ref|> a \n dog <|/ref|> \n <|det|> [ [ 10 , 20 , 30 , 40 ] , ] <|/det|>",
        "<|ref|>a dog<|/ref|><|det|>[[010, 20, 30, 0040]]<|/det|>",
    ],
)
def test_spaces_and_leading_zeros_do_not_matter(text):
    assert boxes(text) == [("a dog", (10, 20, 30, 40))]
    assert parse_boxes(text, SIZE).problems == []


@pytest.mark.parametrize(
    ("box", "note"),
    [
        ("[1, 2, 3]", "3 value(s), not 4"),
        ("[1, 2, 3, 4, 5]", "5 value(s), not 4"),
        ("[]", "0 value(s), not 4"),
        ("[1, 2, 3, ]", "'' is not an integer"),
        ("[1, 2, 3.5, 4]", "'3.5' is not an integer"),
        ("[1, 2, x, 4]", "'x' is not an integer"),
        ("[1, 2, ３, 4]", "'３' is not an integer"),
        ("[1, 2, 3e2, 4]", "'3e2' is not an integer"),
        ("[1, 2, 1000, 4]", "1000 is not in 0 to 999"),
        ("[-1, 2, 3, 4]", "-1 is not in 0 to 999"),
        (f"[1, 2, {'9' * 5000}, 4]", "is not in 0 to 999"),
        ("[30, 2, 3, 4]", "wrong way round"),
        ("[1, 40, 3, 4]", "wrong way round"),
        ("__import__('os')", "is not a box in brackets"),
        ("1, 2, 3, 4", "'1, 2, 3, 4' is not a box in brackets"),
        ("[1, 2, [3, 4]", "is not closed"),
    ],
)
def test_a_bad_box_is_noted_with_its_label_and_the_good_ones_stay(box, note):
    text = f"<|ref|>cat<|/ref|><|det|>[[1, 1, 2, 2], {box}, [3, 3, 4, 4]]<|/det|> {GOOD}"
    result = parse_boxes(text, SIZE)
    assert boxes(text) == [
        ("cat", (1, 1, 2, 2)),
        ("cat", (3, 3, 4, 4)),
        ("a dog", (10, 20, 30, 40)),
    ]
    assert result.problems, "the bad box is not mentioned"
    assert note in result.problems[0] and "'cat'" in result.problems[0]
    assert all(len(problem) < 200 and "\n" not in problem for problem in result.problems)


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ("<|ref|>cat<|/ref|><|det|>[[1, 2, 3, 4]]", [("cat", (1, 2, 3, 4))], "have no <|/det|>"),
        ("<|ref|>cat<|/ref|><|det|>[[1, 2, 3, 4], [5, 6", [("cat", (1, 2, 3, 4))], "[5, 6 is cut off"),
        ("<|ref|>cat<|/ref|><|det|>[[1, 2, 3, 4]<|/det|>", [("cat", (1, 2, 3, 4))], "not closed"),
        ("<|ref|>cat<|/ref|><|det|>[]<|/det|>", [], "the list is empty"),
        ("<|ref|>cat<|/ref|><|det|><|/det|>", [], "the list is empty"),
        ("<|ref|>cat<|/ref|><|det|>[[1, 2, 3, 4]]]<|/det|>", [("cat", (1, 2, 3, 4))], "a ] too many"),
        ("<|ref|>cat<|det|>[[1, 2, 3, 4]]<|/det|>", [("cat", (1, 2, 3, 4))], "'cat' has no <|/ref|>"),
        ("<|ref|>cat", [], "'cat' has no <|/ref|>"),
        ("<|ref|>cat<|/ref|> sits", [], "'cat' has no boxes"),
        ("<|det|>[[1, 2, 3, 4]]<|/det|>", [("", (1, 2, 3, 4))], "without a label"),
        ("<|ref|>cat<|/ref|> or <|det|>[[1, 2, 3, 4]]<|/det|>", [("cat", (1, 2, 3, 4))], "text 'or' between"),
        ("cat<|/ref|>", [], "<|/ref|> without an opening tag"),
        ("[[1, 2, 3, 4]]<|/det|>", [], "<|/det|> without an opening tag"),
        ("<|ref|>a<|ref|>cat<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", [("cat", (1, 2, 3, 4))], "'a' has no"),
        ("<|ref|><|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", [("", (1, 2, 3, 4))], None),
    ],
)
def test_tags_that_do_not_fit_are_noted(text, expected, note):
    result = parse_boxes(text, SIZE)
    assert boxes(text) == expected
    assert [note] == [note for problem in result.problems if note in problem][:1] if note else True
    assert boxes(f"{text} {GOOD}")[-1] == ("a dog", (10, 20, 30, 40)), "the next object must still be read"


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="image_size"):
        parse_boxes(GOOD, size)


PIECES = [
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "[",
    "]",
    "[[",
    ",",
    "-",
    "9",
    "1000",
    ".5",
    " ",
    "\n",
    "猫",
]


def mutate(text, rng):
    for _ in range(rng.randrange(1, 8)):
        place, other = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
        action = rng.randrange(4)
        if action == 0:
            text = text[:place] + rng.choice(PIECES) + text[place:]
        elif action == 1:
            text = text[: min(place, other)] + text[max(place, other) :]
        elif action == 2:
            text = text[:place] + text[min(place, other) : max(place, other)] + text[place:]
        else:
            text = text[:place] + chr(rng.randrange(1, 0xD7FF)) + text[place + 1 :]
    return text


def test_mutated_answers_never_raise_and_give_boxes_inside_the_picture():
    rng = random.Random(0)
    seed_text = f"Here {GOOD} and <|ref|>猫<|/ref|><|det|>[[1, 2, 3, 4], [0, 0, 999, 999]]<|/det|>."
    found = noted = 0
    for _ in range(5000):
        text = mutate(seed_text, rng)
        result = parse_boxes(text, (640, 480))
        for item in result.objects:
            left, top, right, bottom = item.box
            assert 0 <= left <= right <= 640 and 0 <= top <= bottom <= 480
            assert isinstance(item.label, str)
        found += len(result.objects)
        noted += len(result.problems)
    assert found > 1000 and noted > 1000, "the mutations must leave both good and bad boxes"


def test_a_degenerate_answer_is_read_in_time_proportional_to_its_length():
    start = time.perf_counter()
    for unit in ("[", "<|ref|>", "<|det|>[", "[1,", "[[1,2,3,4],", "]", "<|"):
        parse_boxes("<|ref|>x<|/ref|><|det|>" + unit * 50_000, SIZE)
    # About 0.5 s on two cores; anything quadratic takes minutes.
    assert time.perf_counter() - start < 20


def test_overlap():
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == box_iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0
