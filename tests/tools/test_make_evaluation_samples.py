"""The synthetic questions of examples/data are those that the tool makes, and their answers are right."""

import json
from pathlib import Path

import numpy as np
import pytest

from paddlemix_vl2.data.records import open_records
from paddlemix_vl2.demo.samples import make_question
from paddlemix_vl2.evaluation.questions import QuestionFile
from paddlemix_vl2.evaluation.tasks import TASKS, score_answer

DATA = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def made(load_tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert load_tool("make_evaluation_samples").main([str(folder)]) == 0
    return folder


def test_the_files_are_those_of_the_tool(made):
    assert {path.name for path in made.iterdir()} == {path.name for path in DATA.iterdir()}
    for file in sorted(DATA.iterdir()):
        committed, drawn = open_records(file), open_records(made / file.name)
        assert len(committed) == len(drawn) > 2
        for index in range(len(committed)):
            # Pictures are compared below: another release of Pillow compresses them another way.
            a, b = ({**records.read(index), "image": ""} for records in (committed, drawn))
            assert a == b, file.name


@pytest.mark.parametrize(
    ("name", "task"), [("chartqa", "chartqa"), ("mmmu", "mmmu"), ("refcoco", "refcoco_val")]
)
def test_the_pictures_are_those_of_the_tool(made, name, task):
    both = [QuestionFile(open_records(folder / f"{name}.tsv"), TASKS[task]) for folder in (DATA, made)]
    for committed, drawn in zip(*both, strict=True):
        for one, other in zip(committed.pictures, drawn.pictures, strict=True):
            # Releases of Pillow may differ by some levels at the edges of letters and shapes.
            assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean() < 3


@pytest.mark.parametrize("name", ["docvqa", "chartqa", "textvqa", "ocrbench", "mmmu", "mmbench"])
def test_the_right_answer_gets_the_full_score(name):
    for question in QuestionFile(open_records(DATA / f"{name}.tsv"), TASKS[name]):
        assert score_answer(question.metric, question.answers[0], question) == 1
        assert score_answer(question.metric, "nothing of it", question) == 0


def test_an_option_is_the_answer_of_its_drawing():
    """The first question of the kind that the file begins with."""
    _, asked = make_question("colour", "test", 0, "en")
    question = QuestionFile(open_records(DATA / "mmbench.tsv"), TASKS["mmbench"])[0]
    assert question.text == asked.prompt
    assert question.options[question.answers[0]] == asked.answer


def test_own_questions_and_requests_name_pictures_that_are_there():
    for file in ("own.jsonl", "requests.jsonl"):
        for line in (DATA / file).read_text().splitlines():
            entry = json.loads(line)
            for message in entry.get("messages", [entry]):
                images = message.get("images", message.get("image"))
                for image in images if isinstance(images, list) else [images]:
                    assert (DATA / image).is_file()


def test_a_folder_that_cannot_be_made_is_one_line(load_tool, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert load_tool("make_evaluation_samples").main([str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
