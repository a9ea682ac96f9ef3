"""Scores of single answers, worked by hand."""

import itertools
import random

import pytest

from paddlemix_vl2.evaluation import metrics

BOX = "<|ref|>the dog<|/ref|><|det|>[[{}]]<|/det|>"


# ---- exact match ----


@pytest.mark.parametrize(
    ("answer", "answers", "score"),
    [
        ("Paris", ["paris"], 1),
        (" two\n dogs ", ["Two dogs"], 1),
        ("paris.", ["paris"], 0),
        ("", ["x"], 0),
        ("", [""], 1),
        ("b", ["a", "b"], 1),
        ("红色", ["红色"], 1),
    ],
)
def test_exact_match(answer, answers, score):
    assert metrics.exact_match(answer, answers) == score


# ---- ANLS ----


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("flaw", "lawn", 2),
        ("saturday", "sunday", 3),
        ("ab", "ba", 2),
        ("图片", "图书", 1),
        ("é", "e", 1),
    ],
)
def test_edit_distance(a, b, distance):
    assert metrics.edit_distance(a, b) == metrics.edit_distance(b, a) == distance


def test_edit_distance_is_that_of_the_definition():
    def by_definition(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(
            by_definition(a[1:], b) + 1,
            by_definition(a, b[1:]) + 1,
            by_definition(a[1:], b[1:]) + (a[0] != b[0]),
        )

    rng = random.Random(0)
    for _ in range(60):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(2))
        assert metrics.edit_distance(a, b) == by_definition(a, b)


@pytest.mark.parametrize(
    ("answer", "answers", "score"),
    [
        ("January 7", ["january 7"], 1),
        ("january  7\n", ["January 7"], 1),
        ("hello world", ["hello worl"], 1 - 1 / 11),
        ("tets", ["test"], 0.5),  # two of four letters: exactly at the threshold, which counts
        ("tes", ["testing"], 0),  # four of seven: 0.43
        ("", ["test"], 0),
        ("", [""], 1),
        ("a", [""], 0),
        ("itc", ["ITC Limited", "itc", "I.T.C."], 1),
        ("itx", ["ITC Limited", "itc"], 1 - 1 / 3),
        ("$1,234.00", ["1234"], 0),  # five of nine letters are to go: 0.44
        ("12 %", ["12%"], 0.75),
        ("Müller", ["Muller"], 1 - 1 / 6),
        ("北京市", ["北京"], 1 - 1 / 3),
    ],
)
def test_anls(answer, answers, score):
    assert metrics.anls(answer, answers) == pytest.approx(score, abs=1e-12)


# ---- relaxed accuracy ----


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("100", "100", 1),
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.01", "100", 0),
        ("94.99", "100", 0),
        ("-105", "-100", 1),
        ("100", "-100", 0),
        ("0.21", "0.2", 1),
        ("5e2", "500", 1),
        ("12%", "12%", 1),
        ("12.5%", "12%", 1),
        ("12", "12%", 0),  # 12 is not 0.12
        ("0.12", "12%", 1),
        ("12 %", "12%", 1),
        ("0", "0", 1),
        ("0.0", "0", 0),  # zero has no 5 %
        ("0.0001", "0", 0),
        ("1,000", "1000", 0),  # a text
        ("1,000", "1,000", 1),
        ("5 km", "5 km", 1),
        ("5.1 km", "5 km", 0),
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("nan", "5", 0),
        ("nan", "nan", 1),
        ("inf", "5", 0),
        ("", "5", 0),
        ("", "", 1),
        (" 7\n", "7", 1),
        ("红色", "红色", 1),
        ("%", "%", 1),
    ],
)
def test_relaxed_accuracy(answer, right, score):
    assert metrics.relaxed_accuracy(answer, [right]) == score


def test_the_best_of_several_right_answers_counts():
    assert metrics.relaxed_accuracy("51", ["fifty", "50"]) == 1
    assert metrics.relaxed_accuracy("51", ["fifty", "40"]) == 0


# ---- VQA accuracy ----


@pytest.mark.parametrize(
    ("votes", "score"),
    # Of ten persons k gave this answer: for each of those k there are k-1 others who did, for the rest k.
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)],
)
def test_vqa_accuracy_of_ten_persons(votes, score):
    answers = ["nokia"] * votes + ["other"] * (10 - votes)
    assert metrics.vqa_accuracy("Nokia", answers) == pytest.approx(score, abs=1e-12)


def test_vqa_accuracy_is_the_mean_over_subsets_without_one_person():
    rng = random.Random(1)
    for _ in range(20):
        answers = rng.choices(["a1", "b1", "c1"], k=10)
        subsets = itertools.combinations(answers, 9)
        expected = sum(min(subset.count("a1") / 3, 1) for subset in subsets) / 10
        assert metrics.vqa_accuracy("a1", answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The two", "2"),
        ("dont stop", "don't stop"),
        ("coca-cola", "coca cola"),
        ("YES!", "yes"),
        ("7 pm.", "7 pm"),
    ],
)
def test_answers_are_written_one_way_before_they_are_compared(answer, right):
    assert metrics.vqa_accuracy(answer, [right] * 10) == 1


def test_an_empty_answer_is_nobodys():
    assert metrics.vqa_accuracy("", ["nokia"] * 10) == 0
    assert metrics.vqa_accuracy("the", ["nokia"] * 10) == 0


# ---- OCRBench ----

FORMULA = "Handwritten Mathematical Expression Recognition"


@pytest.mark.parametrize(
    ("answer", "answers", "category", "hit"),
    [
        ("The word is CENTRE.", ["centre"], "Regular Text Recognition", 1),
        ("the centre", ["CENTER", "Centre"], "", 1),
        ("cent re", ["centre"], "Irregular Text Recognition", 0),
        ("12\n34", ["12 34"], "", 1),
        ("", ["x"], "", 0),
        ("anything", [""], "", 1),
        ("x ^ { 2 } + 1", ["x^{2}+1"], FORMULA, 1),
        ("x ^ { 2 } + 1", ["x^{2}+1"], "Regular Text Recognition", 0),
        ("X", ["x"], FORMULA, 0),  # in formulas upper and lower case differ
        ("a\nb", ["ab"], "HME100k", 1),
        ("欢迎光临", ["欢迎"], "", 1),
    ],
)
def test_ocrbench_hits(answer, answers, category, hit):
    assert metrics.ocrbench_hit(answer, answers, category) == hit


# ---- multiple choice ----

OPTIONS = {"A": "a cat", "B": "a dog", "C": "two dogs", "D": "a fish"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (B) ", "B"),
        ("B.", "B"),
        ("B. a dog", "B"),
        ("B) because of the ears", "B"),
        ("[C]", "C"),
        ("**D**", "D"),
        ("B: A dog", "B"),
        ("The answer is C.", "C"),
        ("Answer: (D)", "D"),
        ("answer is a dog", "B"),  # "a" is not the letter here
        ("option C, not option A... no: the correct option D", "D"),
        ("I think it is B because of the ears", "B"),
        ("B\n\nExplanation: A is wrong", "B"),
        ("A\nbecause it is so", "A"),
        ("A fish", "D"),
        ("a fish.", "D"),
        ("A dog can be seen", "B"),  # the text of one option; "A" is an article
        ("either B or C", None),
        ("either A or B", None),
        ("It must be A", "A"),
        ("I guess A is right", "A"),
        ("A dog is seen, so B", "B"),
        ("", None),
        ("none of them", None),
        ("E", None),
        ("Because", None),
        ("Bananas", None),
        ("It shows two dogs", "C"),
        ("cats and dogs", None),
        ("答案是 C", "C"),
    ],
)
def test_the_letter_that_an_answer_chooses(answer, letter):
    assert metrics.chosen_letter(answer, OPTIONS) == letter


def test_options_that_are_letters_or_numbers_are_taken_by_their_text():
    options = {"A": "3", "B": "4", "C": "C major", "D": "B"}
    assert metrics.chosen_letter("4", options) == "B"
    assert metrics.chosen_letter("B", options) == "D"
    assert metrics.chosen_letter("there are 3", options) == "A"
    assert metrics.chosen_letter("there are 34", options) is None


def test_a_ninth_option_is_not_the_speaker():
    options = {letter: "" for letter in "ABCDEFGHI"}
    assert metrics.chosen_letter("I think it is B", options) == "B"
    assert metrics.chosen_letter("the answer is I", options) == "I"


def test_special_characters_in_options_are_characters():
    options = {"A": "f(x) = x^2", "B": "f(x) = [x]"}
    assert metrics.chosen_letter("it is f(x) = [x]", options) == "B"


def test_choice_accuracy():
    assert metrics.choice_accuracy("(C)", ["C"], OPTIONS) == 1
    assert metrics.choice_accuracy("(C)", ["A"], OPTIONS) == 0
    assert metrics.choice_accuracy("who knows", ["A"], OPTIONS) == 0
    assert metrics.choice_accuracy("B", ["A", "B"], OPTIONS) == 1


# ---- boxes ----


@pytest.mark.parametrize(
    ("numbers", "hit"),
    [
        ("0, 0, 999, 999", 0),  # a quarter of the picture against all of it
        ("0, 0, 500, 500", 1),
        ("0, 0, 500, 999", 1),  # half of it is right: exactly 0.5
        ("0, 0, 502, 999", 0),  # 251 columns and not 250: a little less
        ("500, 500, 999, 999", 0),
        ("600, 0, 500, 500", 0),  # the wrong way round
        ("0, 0, 500", 0),
        ("0, 0, 500, 500], [700, 700, 800, 800", 1),  # the first counts
        ("700, 700, 800, 800], [0, 0, 500, 500", 0),
    ],
)
def test_a_box_must_overlap_by_half(numbers, hit):
    assert metrics.box_hit(BOX.format(numbers), (0, 0, 250, 250), (500, 500)) == hit


@pytest.mark.parametrize("answer", ["", "at the top left", "[0, 0, 500, 500]"])
def test_an_answer_without_a_box_is_no_hit(answer):
    assert metrics.box_hit(answer, (0, 0, 250, 250), (500, 500)) == 0


def test_coordinates_are_of_width_and_height_each():
    # 0.2 to 0.4 of 1000 pixels in width, 0.5 to 1 of 200 pixels in height
    assert metrics.box_hit(BOX.format("200, 500, 400, 999"), (200, 100, 400, 200), (1000, 200)) == 1
    assert metrics.box_hit(BOX.format("200, 500, 400, 999"), (100, 200, 200, 400), (1000, 200)) == 0
