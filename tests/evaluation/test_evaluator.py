"""From questions to a score, with a model that says the last word of the prompt."""

import json
from pathlib import Path

import paddle
import pytest

from paddlemix_vl2.data.records import open_records
from paddlemix_vl2.evaluation.answering import answer_missing
from paddlemix_vl2.evaluation.evaluator import Benchmark, load_processor, summarize, to_markdown
from paddlemix_vl2.evaluation.journal import Journal
from paddlemix_vl2.evaluation.questions import QuestionFile
from paddlemix_vl2.evaluation.tasks import TASKS
from paddlemix_vl2.generation.batched import GenerationLimits

RED = Path(__file__).resolve().parents[2] / "examples" / "images" / "drawn" / "red_circle.png"


@pytest.fixture
def evaluate(processor, tmp_path):
    """Ask the questions of a file; the results in order."""

    def run(model, file, task="own", size=2):
        benchmark = Benchmark(QuestionFile(open_records(file), TASKS[task]))
        journal = Journal(tmp_path / "out.jsonl", {"task": task}, len(benchmark))
        try:
            list(answer_missing(model, processor, benchmark, journal, GenerationLimits(80, size)))
        finally:
            journal.close()
        return journal.finish()

    return run


def test_right_wrong_and_broken_questions(evaluate, echo, write_jsonl):
    file = write_jsonl(
        {"id": "a", "question": "say red", "answer": "red", "category": "colour"},
        {"question": "say blue circle", "answer": "square", "category": "shape"},
        "{",
        {"question": "what is this", "answer": "this", "image": "no.png", "category": "colour"},
        {"question": "say green", "answers": ["red", "green"], "category": "colour"},
    )
    results = evaluate(echo, file)
    assert results[0] == {
        "id": "a",
        "question": "say red",
        "category": "colour",
        "prediction": "red",
        "answers": ["red"],
        "metric": "match",
        "score": 1.0,
    }
    assert [result["score"] for result in results] == [1, 0, 0, 0, 1]
    assert results[2]["error"].startswith(f"{file}:3: not valid JSON")
    assert results[3]["error"].startswith(f"{file}:4: ") and "no.png: no such file" in results[3]["error"]
    summary = summarize(TASKS["own"], results)
    assert (summary["score"], summary["questions"], summary["failed"]) == (40.0, 5, 2)
    assert summary["categories"] == {
        "colour": {"score": 66.67, "questions": 3, "failed": 1},
        "shape": {"score": 0.0, "questions": 1, "failed": 0},
    }


def test_an_interrupted_evaluation_goes_on_and_is_the_same(evaluate, make_echo, write_jsonl, tmp_path):
    words = ["red", "blue", "green", "black", "cat", "dog", "fish"]
    file = write_jsonl(*[{"question": f"say {word}", "answer": word} for word in words])
    interrupted = make_echo(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(interrupted, file)
    assert not (tmp_path / "out.jsonl").exists() and len(interrupted.shapes) == 2
    second = make_echo()
    results = evaluate(second, file)
    assert sum(rows for rows, _ in second.shapes) == len(words) - 4, "what was answered is not asked again"
    assert [result["prediction"] for result in results] == words
    unused = make_echo()
    assert evaluate(unused, file) == results and unused.shapes == []


def test_the_prompt_of_the_task_reaches_the_model(evaluate, make_echo, write_jsonl):
    file = write_jsonl({"question": "Which?", "options": ["red", "blue"], "answer": "A"})
    # Fourteen words: the two options and the instruction.
    (result,) = evaluate(make_echo(words=14), file, "mmstar")
    said = "A. red B. blue Answer with the option's letter from the given choices directly."
    assert result["prediction"] == said


def test_boxes_are_scored_with_their_special_tokens(evaluate, processor, write_jsonl):
    class Locating:
        def generate(self, input_ids, **others):
            said = "<|ref|>the red circle<|/ref|><|det|>[[0, 0, 500, 500]]<|/det|>"
            ids = [*processor.tokenizer.encode(said), processor.tokenizer.eos_token_id]
            return paddle.to_tensor([ids] * input_ids.shape[0]), None

    entry = {"image": str(RED), "sent": "x", "width": 100, "height": 100, "bbox": [0, 0, 50, 50]}
    (result,) = evaluate(Locating(), write_jsonl(entry), "refcoco_val")
    assert result["score"] == 1 and result["box"] == [0, 0, 50, 50]
    assert result["prediction"].startswith("<|ref|>") and "answers" not in result


def result_of(score, category="", **more):
    return {"score": score, "category": category, **more}


def test_ocrbench_counts_hits_and_the_others_a_mean():
    results = [result_of(1.0)] * 3 + [result_of(0.0)]
    assert (summarize(TASKS["ocrbench"], results)["score"], TASKS["ocrbench"].unit) == (3, "hits")
    assert summarize(TASKS["docvqa"], results)["score"] == 75
    assert summarize(TASKS["docvqa"], [result_of(0.5), result_of(0.75)])["score"] == 62.5


def test_the_table_has_the_papers_scores_beside():
    results = [result_of(1.0, "b|c"), result_of(0.5, "a", error="x"), result_of(0.0, "a")]
    lines = to_markdown(summarize(TASKS["docvqa"], results)).splitlines()
    assert lines[0] == (
        "|  | questions | failed | score (%) | paper: VL2-Tiny | paper: VL2-Small | paper: VL2 |"
    )
    assert lines[2:] == [
        "| DocVQA test | 3 | 1 | 50.0 | 88.9 | 92.3 | 93.3 |",
        "| a | 2 | 1 | 25.0 |  |  |  |",
        "| b/c | 1 | 0 | 100.0 |  |  |  |",
    ]
    assert len({line.count("|") for line in lines}) == 1
    assert "| - | - | 94.9 |" in to_markdown(summarize(TASKS["refcoco+_testA"], results))
    json.dumps(summarize(TASKS["docvqa"], results))


def test_infovqa_is_asked_with_more_tiles(checkpoint, processor):
    usual = load_processor(checkpoint, TASKS["docvqa"])
    wide = load_processor(checkpoint, TASKS["infovqa"])
    assert usual.candidate_resolutions == processor.candidate_resolutions
    tile = usual.tile_size
    products = {(width // tile) * (height // tile) for width, height in wide.candidate_resolutions}
    assert max(products) == 18 and wide.candidate_resolutions[0] == (tile, tile)
    assert (18 * tile, tile) in wide.candidate_resolutions
