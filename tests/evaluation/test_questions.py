"""Each published layout, an entry of it written by hand, and what is wrong with an entry."""

import base64
import io
import json

import pytest
from PIL import Image

from paddlemix_vl2.data.records import open_records
from paddlemix_vl2.evaluation.questions import QuestionFile
from paddlemix_vl2.evaluation.tasks import TASKS


def encoded(color="red", size=(40, 20)):
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


def questions_of(file, task, *rest, **settings):
    return QuestionFile(open_records(file), TASKS[task], *rest, **settings)


@pytest.fixture
def write_json(tmp_path):
    def write(content):
        (tmp_path / "data.json").write_text(json.dumps(content))
        return tmp_path / "data.json"

    return write


# ---- layouts ----


def test_tsv(write_tsv):
    file = write_tsv(
        {"index": 7, "image": encoded(), "question": "Who?", "answer": "['Ann', 'Ann Lee']", "category": "x"},
        {"index": 8, "image": str([encoded("blue"), encoded()]), "question": "Two?", "answer": "[not a list"},
        {"index": 9, "image": 8, "question": "The same two?", "answer": "12"},
    )
    first, second, third = questions_of(file, "docvqa")
    assert (first.id, first.text, first.category) == ("7", "Who?", "x")
    assert first.answers == ["Ann", "Ann Lee"] and first.metric == "anls" and first.options == {}
    assert [picture.size for picture in first.pictures] == [(40, 20)]
    assert [picture.getpixel((0, 0)) for picture in second.pictures] == [(0, 0, 255), (255, 0, 0)]
    assert second.answers == ["[not a list"] and third.answers == ["12"]
    assert [picture.getpixel((0, 0)) for picture in third.pictures] == [(0, 0, 255), (255, 0, 0)]


def test_tsv_of_multiple_choice(write_tsv):
    row = {"index": 1, "image": encoded(), "question": "What?", "hint": "Look.", "answer": "b"}
    file = write_tsv({**row, "A": "cat", "B": "dog", "C": "nan", "D": ""}, {**row, "answer": "five"})
    closed, open_one = questions_of(file, "mmstar")
    assert closed.options == {"A": "cat", "B": "dog"} and closed.answers == ["B"] and closed.hint == "Look."
    assert open_one.options == {} and open_one.answers == ["five"]


def test_tsv_with_paths(write_tsv, tmp_path):
    file = write_tsv({"index": 1, "image_path": "['a.png', 'b.png']", "question": "?", "answer": "x"})
    assert questions_of(file, "docvqa")[0].pictures == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert questions_of(file, "docvqa", "/pictures")[0].pictures == ["/pictures/a.png", "/pictures/b.png"]


def test_docvqa_and_infovqa_json(write_json):
    file = write_json(
        {
            "dataset_name": "docvqa",
            "data": [
                {
                    "questionId": 337,
                    "question": "What is the date?",
                    "image": "documents/a_1.png",
                    "answers": ["1/8/93"],
                    "data_split": "val",
                },
                {
                    "questionId": 1,
                    "question": "How many?",
                    "image_local_name": "38.jpeg",
                    "image_url": "https://example.com/38.jpeg",
                    "answers": ["2", "two"],
                },
            ],
        }
    )
    first, second = questions_of(file, "docvqa", "/d")
    assert (first.id, first.pictures, first.answers) == ("337", ["/d/documents/a_1.png"], ["1/8/93"])
    assert (second.pictures, second.answers) == (["/d/38.jpeg"], ["2", "two"])


def test_chartqa_json(write_json):
    file = write_json([{"imgname": "multi_col_80.png", "query": "How many bars?", "label": "14"}])
    (question,) = questions_of(file, "chartqa", "/d")
    assert (question.id, question.text, question.answers) == ("0", "How many bars?", ["14"])
    assert question.pictures == ["/d/multi_col_80.png"] and question.metric == "relaxed"


def test_textvqa_json(write_json):
    entry = {
        "question_id": 34602,
        "image_id": "003a8ae2ef43b901",
        "question": "brand?",
        "answers": ["nokia"] * 10,
    }
    (question,) = questions_of(write_json({"data": [entry]}), "textvqa", "/d")
    assert (question.id, question.pictures) == ("34602", ["/d/003a8ae2ef43b901.jpg"])
    assert question.answers == ["nokia"] * 10


def test_ocrbench_json(write_json):
    entry = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "id": 0, "image_path": "a/1.png"}
    file = write_json([{**entry, "question": "what is written in the image?", "answers": ["CENTRE"]}])
    (question,) = questions_of(file, "ocrbench", "/d")
    assert (question.pictures, question.answers) == (["/d/a/1.png"], ["CENTRE"])
    assert question.category == "Regular Text Recognition"


def test_refcoco_jsonl(write_jsonl):
    entry = {"image": "train2014/1.jpg", "sent": "the left dog", "width": 640, "height": 480}
    file = write_jsonl(
        {**entry, "bbox": [10, 20, 110, 220]},
        {**entry, "bbox": [10, 20, 100, 200], "bbox_format": "xywh"},
        {
            "image": "train2014/1.jpg",
            "expression": "a cat",
            "width": 640,
            "height": 480,
            "bbox": [1.5, 2, 3, 4],
        },
    )
    first, second, third = questions_of(file, "refcoco_val", "/d")
    assert first.box == second.box == (10, 20, 110, 220) and first.size == (640, 480)
    assert (first.text, third.text, third.box) == ("the left dog", "a cat", (1.5, 2, 3, 4))
    assert first.answers == [] and first.pictures == ["/d/train2014/1.jpg"]
    swapped = questions_of(file, "refcoco_val", bbox_format="xywh")
    assert swapped[0].box == (10, 20, 120, 240) and swapped[1].box == (10, 20, 110, 220)


def test_the_size_of_a_picture_is_looked_up_where_it_is_not_said(write_jsonl, tmp_path):
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    (question,) = questions_of(
        write_jsonl({"image": "a.png", "sent": "x", "bbox": [0, 0, 60, 50]}), "refcoco_val"
    )
    assert question.size == (60, 50)


def test_ones_own_jsonl(write_jsonl):
    file = write_jsonl(
        {"question": "1 + 1?", "answer": 2},
        {"id": "q", "images": ["a.png", "b.png"], "question": "Which?", "answers": ["a"], "metric": "anls"},
        {
            "image": "a.png",
            "question": "Which?",
            "options": {"A": "x", "B": "y"},
            "answer": "B",
            "metric": "choice",
        },
        {"image": f"data:image/png;base64,{encoded()}", "question": "?", "answer": "x"},
    )
    first, second, third, fourth = questions_of(file, "own", "/d")
    assert (first.pictures, first.answers, first.metric) == ([], ["2"], "match")
    assert (second.id, second.pictures, second.metric) == ("q", ["/d/a.png", "/d/b.png"], "anls")
    assert third.options == {"A": "x", "B": "y"} and third.metric == "choice"
    assert fourth.pictures[0].size == (40, 20)


# ---- which of them ----


def test_only_a_split_and_only_the_first(write_jsonl):
    rows = [{"question": str(n), "answer": "x", "split": "val" if n % 2 else "dev"} for n in range(6)]
    file = write_jsonl(*rows)
    assert [question.text for question in questions_of(file, "own", split="val")] == ["1", "3", "5"]
    questions = questions_of(file, "own", split="val", limit=2)
    assert len(questions) == 2 and [question.text for question in questions] == ["1", "3"]
    assert questions.place(1) == f"{file}:4"
    with pytest.raises(ValueError, match="no record has 'test' as its split"):
        questions_of(file, "own", split="test")


def test_a_broken_record_is_of_every_split(write_jsonl):
    file = write_jsonl({"question": "a", "answer": "x", "split": "dev"}, "{", name="b.jsonl")
    questions = questions_of(file, "own", split="val")
    assert len(questions) == 1
    with pytest.raises(ValueError, match="not valid JSON"):
        questions[0]


# ---- what is wrong ----

BOX = {"image": "a.png", "sent": "x", "width": 100, "height": 50}


@pytest.mark.parametrize(
    ("task", "entry", "message"),
    [
        ("own", {"answer": "x"}, "has no question (question, query, sent, expression)"),
        ("own", {"question": " ", "answer": "x"}, "has no question"),
        ("own", {"question": "?"}, "has no answer (answer, answers, label)"),
        ("own", {"question": "?", "answers": []}, "has no answer"),
        ("own", {"question": "?", "answer": "x", "metric": "bleu"}, "'metric' is 'bleu'; use one of anls,"),
        ("own", {"question": "?", "answer": "x", "image": 3}, "a picture is a path or a data URL, not 3"),
        (
            "own",
            {"question": "?", "answer": "x", "image": "https://a/b.png"},
            "is not a file; download it first",
        ),
        ("textvqa", {"question": "?", "answers": ["a"] * 3}, "has 3 answer(s); VQA accuracy takes 4 or more"),
        ("mmstar", {"question": "?", "answer": "C", "options": ["x", "y"]}, "is 'C', the options are A, B"),
        ("refcoco_val", BOX, "'bbox' is four numbers, not None"),
        ("refcoco_val", {**BOX, "bbox": [1, 2, 3]}, "'bbox' is four numbers"),
        ("refcoco_val", {**BOX, "bbox": [1, 2, 3, "4"]}, "'bbox' is four numbers"),
        ("refcoco_val", {**BOX, "bbox": [50, 10, 40, 20]}, "(xyxy) is not inside a picture of 100 x 50"),
        ("refcoco_val", {**BOX, "bbox": [0, 0, 100, 60]}, "is not inside a picture of 100 x 50"),
        ("refcoco_val", {**BOX, "bbox": [0, 0, 1, 1], "bbox_format": "cxcywh"}, "use one of xyxy, xywh"),
        (
            "refcoco_val",
            {**BOX, "bbox": [0, 0, 1, 1], "width": [5]},
            "'width' and 'height' are pixels, not [5]",
        ),
        ("refcoco_val", {**BOX, "bbox": [0, 0, 1, 1], "height": "0"}, "'width' and 'height' are pixels"),
        ("refcoco_val", {"sent": "x", "bbox": [0, 0, 1, 1]}, "has 0 pictures; a box is in one"),
        ("refcoco_val", {**BOX, "width": None, "bbox": [0, 0, 1, 1]}, "a.png: no such file"),
    ],
)
def test_a_broken_entry_says_what_is_wrong(write_jsonl, task, entry, message):
    questions = questions_of(write_jsonl(entry), task)
    with pytest.raises(ValueError) as error:
        questions[0]
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("99", "'image' is '99': neither base64 nor the index of a row"),
        ("2", "'image' names"),
        ("!" * 80, "'image': is not base64"),
        ("A" * 80, "'image': not a picture that Pillow can read"),
    ],
)
def test_a_tsv_without_the_picture_says_so(write_tsv, image, message):
    row = {"question": "?", "answer": "x"}
    questions = questions_of(
        write_tsv({"index": 1, "image": image, **row}, {"index": 2, "image": 1, **row}), "own"
    )
    with pytest.raises(ValueError, match=message):
        questions[0]
