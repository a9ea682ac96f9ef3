"""Asking models: one that knows the answers, and a small one of random weights through the script."""

import importlib
import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2Config, DeepseekVLV2ForCausalLM
from paddlemix_vl2.demo.evaluation import MAX_NEW_TOKENS, evaluate
from paddlemix_vl2.demo.questions import KINDS
from paddlemix_vl2.demo.samples import make_question

ROOT = Path(__file__).resolve().parents[2]


class Knowing:
    """Says the right answers, in the order in which questions come; every ``wrong_every``-th is cut short."""

    def __init__(self, tokenizer, answers, wrong_every=0):
        self.tokenizer, self.answers, self.wrong_every = tokenizer, list(answers), wrong_every
        self.asked = 0

    def generate(self, input_ids, images, max_new_tokens, **others):
        rows = []
        for _ in range(input_ids.shape[0]):
            ids = self.tokenizer.encode(self.answers[self.asked])
            self.asked += 1
            if self.wrong_every and self.asked % self.wrong_every == 0:
                ids = ids[:-1]
            rows.append([*ids, self.tokenizer.eos_token_id])
        width = max(map(len, rows))
        assert width <= max_new_tokens
        end = self.tokenizer.eos_token_id
        return paddle.to_tensor(np.array([row + [end] * (width - len(row)) for row in rows])), None


def right_answers(kinds, count, split="test"):
    return [
        make_question(kind, split, index, language)[1].answer
        for kind in kinds
        for index in range(count)
        for language in ("en", "zh")
    ]


def test_right_answers_are_counted_as_right(processor):
    model = Knowing(processor.tokenizer, right_answers(KINDS, 3))
    batches = list(evaluate(model, processor, samples_per_kind=3, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 2] * len(KINDS)
    answered = [one for batch in batches for one in batch]
    assert all(one.right for one in answered)
    assert all(one.answer == one.question.answer for one in answered)


def test_wrong_answers_are_counted_as_wrong(processor):
    model = Knowing(processor.tokenizer, right_answers(["colour"], 6), wrong_every=3)
    (batch,) = evaluate(model, processor, samples_per_kind=6, kinds=["colour"])
    assert [one.right for one in batch] == [True, True, False] * 4


def test_the_longest_answer_fits(tokenizer):
    lengths = [len(tokenizer.encode(answer)) for answer in right_answers(["grounded_describe"], 100)]
    assert max(lengths) + 1 <= MAX_NEW_TOKENS


@pytest.fixture(scope="module")
def checkpoint(processor, tmp_path_factory):
    values = json.loads((ROOT / "configs" / "model" / "demo.json").read_text())
    values["candidate_resolutions"] = [list(pair) for pair in processor.candidate_resolutions]
    values["vision_config"]["image_size"] = 84
    values["language_config"].update(vocab_size=640, max_position_embeddings=512, num_hidden_layers=2)
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps(values))
    model = DeepseekVLV2ForCausalLM(DeepseekVLV2Config.from_json(folder))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("evaluate_demo")


@pytest.mark.slow
def test_the_script_prints_a_table_and_writes_every_answer(script, checkpoint, tmp_path, capsys):
    output = tmp_path / "new" / "scores.json"
    flags = ["--samples_per_kind", "1", "--batch_size", "2", "--kinds", "colour", "compare"]
    assert script.main(["--model_path", str(checkpoint), *flags, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| question | en | zh")
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == [
        "colour",
        "compare",
        "closed questions",
        "reading",
        "grounding",
        "all",
    ]
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["split"] == "test" and written["samples_per_kind"] == 1
    assert [(row["kind"], row["language"]) for row in written["answers"]] == [
        ("colour", "en"),
        ("colour", "zh"),
        ("compare", "en"),
        ("compare", "zh"),
    ]
    assert written["kinds"]["colour"]["en"]["total"] == 1
    assert set(written["groups"]) == {"closed questions", "reading", "grounding", "all"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_path", "/no/such/folder"], "/no/such/folder"),
        (["--model_path", "x", "--kinds", "color"], "--kinds: unknown color; there are describe, colour"),
        (["--model_path", "x", "--samples_per_kind", "0"], "'0' is not a whole number from 1 up"),
    ],
)
def test_mistakes_are_said_in_one_line(script, capsys, flags, message):
    assert script.main(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
