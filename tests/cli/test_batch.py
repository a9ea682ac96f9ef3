"""Files of requests from the command line: order, broken lines, interruptions."""

import json
from pathlib import Path

import pytest

from paddlemix_vl2.cli import batch

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "examples" / "images" / "drawn"
CHECKPOINT = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"


@pytest.fixture
def infer(tmp_path, capsys):
    """Run the command on entries or lines; its exit code, the output's entries and the standard error."""

    def run(entries, *flags):
        data, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        data.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        capsys.readouterr()
        paths = ["--input", data, "--output", output, "--image_dir", PICTURES, "--dtype", "float32"]
        code = batch.main([str(flag) for flag in [*paths, "--max_new_tokens", 8, *flags]])
        written = output.read_bytes().splitlines() if output.exists() else []
        return code, [json.loads(line) for line in written], capsys.readouterr().err

    return run


ENTRIES = [
    {"id": "words", "image": "words.png", "question": "Read the text."},
    {"question": "The picture shows a red circle. Which colour is the circle?"},
    {
        "id": 3,
        "messages": [{"role": "user", "content": "<image>\nWhat is it?", "images": ["red_circle.png"]}],
    },
    {"image": ["red_circle.png", "blue_square.png"], "question": "Do the two pictures show the same shape?"},
]
BROKEN = [
    ("{", "not valid JSON"),
    ('["a"]', "holds a JSON list"),
    ({"image": "words.png"}, "has no question"),
    ({"image": "no.png", "question": "What?"}, "no.png: no such file"),
    ({"question": "red " * 3000}, "but the model has 2048 positions"),
]


@pytest.fixture(scope="module")
def alone():
    """The answer of each entry by itself, through the Python interface."""
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
    from paddlemix_vl2.evaluation.requests import read_request

    processor = DeepseekVLV2Processor.from_pretrained(CHECKPOINT)
    model = DeepseekVLV2ForCausalLM.from_pretrained(CHECKPOINT, dtype="float32")
    answers = []
    for entry in ENTRIES:
        batch = processor(conversations=read_request(entry, str(PICTURES)))
        ids = model.generate(**batch, max_new_tokens=8)[0][0].tolist()
        end = processor.tokenizer.eos_token_id
        answers.append(processor.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids))
    return answers


@pytest.mark.parametrize("size", [1, 3])
def test_answers_are_in_the_order_of_the_lines(infer, alone, size):
    code, written, err = infer(ENTRIES, "--batch_size", size)
    assert code == 0 and "4 of 4 answered" in err
    assert [entry["answer"] for entry in written] == alone
    assert [(entry["line"], entry.get("id")) for entry in written] == [
        (1, "words"),
        (2, None),
        (3, 3),
        (4, None),
    ]


def test_broken_lines_are_told_and_the_others_answered(infer, alone, tmp_path):
    mixed = [ENTRIES[0], *[line for line, _ in BROKEN], ENTRIES[2]]
    code, written, err = infer(mixed)
    assert code == 1 and "2 of 7 answered" in err and "5 failed; the same command tries these again" in err
    assert [entry.get("answer") for entry in written] == [alone[0], *[None] * 5, alone[2]]
    for number, (entry, (_, message)) in enumerate(zip(written[1:], BROKEN, strict=False), start=2):
        assert entry["line"] == number and "answer" not in entry
        assert entry["error"].startswith(f"{tmp_path / 'in.jsonl'}:{number}: ") and message in entry["error"]
        assert f"failed: {entry['error']}" in err


def test_an_interrupted_run_goes_on(infer, alone, monkeypatch, tmp_path):
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM

    generate, calls = DeepseekVLV2ForCausalLM.generate, []

    def interrupted(self, *arguments, **settings):
        calls.append(settings["input_ids"].shape[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *arguments, **settings)

    monkeypatch.setattr(DeepseekVLV2ForCausalLM, "generate", interrupted)
    code, written, err = infer(ENTRIES, "--batch_size", 1)
    assert (code, written) == (130, []) and "the same command goes on from here" in err
    assert len((tmp_path / "out.jsonl.partial").read_bytes().splitlines()) == 2
    code, written, _ = infer(ENTRIES, "--batch_size", 1)
    assert code == 0 and [entry["answer"] for entry in written] == alone
    assert calls == [1] * 5, "two were answered before, one was interrupted, two were left"
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_another_input_is_refused(infer):
    assert infer(ENTRIES[:1])[0] == 0
    code, written, err = infer(ENTRIES[1:2])
    assert code == 2 and len(written) == 1 and "input was" in err and "--restart begins anew" in err
    code, written, _ = infer(ENTRIES[1:2], "--restart")
    assert code == 0 and "id" not in written[0]


def test_a_system_prompt_and_a_limit(infer):
    code, written, _ = infer(ENTRIES, "--limit", 2, "--system_prompt", "You are brief.")
    assert code == 0 and len(written) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "no.jsonl"], "no.jsonl: no such file"),
        (["--max_new_tokens", "0"], "'0' is not a whole number from 1 up"),
        (["--model_path", "/no/folder"], "/no/folder"),
        (["--inputs", "x"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line(infer, flags, message):
    code, _, err = infer(ENTRIES, *flags)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_an_empty_file_is_one_line(infer):
    code, written, err = infer([])
    assert (code, written) == (2, []) and "holds no records" in err
