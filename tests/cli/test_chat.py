"""A conversation in the terminal: what each line does, and what the model is asked."""

import io
from pathlib import Path

import pytest

from paddlemix_vl2.cli import chat

PICTURES = Path(__file__).resolve().parents[2] / "examples" / "images" / "drawn"
WORDS, CIRCLE = str(PICTURES / "words.png"), str(PICTURES / "red_circle.png")


@pytest.fixture
def talk(monkeypatch, capsys, demo_model):
    """Lines, flags -> exit code, standard output's and error's lines."""

    def run(lines, *flags):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        monkeypatch.setattr(chat, "load_model", lambda *_: demo_model)
        capsys.readouterr()
        code = chat.main([*flags, "--dtype", "float32", "--max_new_tokens", "16"])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def answer(model, processor, messages):
    """What ``generate`` says to a conversation."""
    ids = model.generate(**processor(conversations=messages), max_new_tokens=16)[0][0].tolist()
    end = processor.tokenizer.eos_token_id
    return processor.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids).strip()


def ask(text, *pictures):
    return {"role": "user", "content": "<image>\n" * len(pictures) + text, "images": list(pictures)}


def test_questions_build_on_what_was_said(talk, demo_model, demo_processor):
    messages, expected = [], []
    for message in (
        ask("Read the text.", WORDS),
        ask("Which shape is it?", CIRCLE),
        ask("Which colour is the circle?"),
    ):
        messages.append(message)
        expected.append(answer(demo_model, demo_processor, messages))
        messages.append({"role": "assistant", "content": expected[-1]})
    lines = ["Read the text.", f"/image {CIRCLE}", "", "Which shape is it?", "Which colour is the circle?"]
    code, out, err = talk(lines, "--image_files", WORDS)
    assert (code, out) == (0, expected)
    assert len(err) == 1 and err[0].startswith("loading ")


def test_reset_forgets_and_quit_ends(talk, demo_model, demo_processor):
    alone = answer(demo_model, demo_processor, [ask("Read the text.", CIRCLE)])
    lines = ["Read the text.", "/reset", f"/image {CIRCLE}", "Read the text.", "/quit", "Read the text."]
    code, out, _ = talk(lines, "--image_files", WORDS)
    assert code == 0 and len(out) == 2 and out[1] == alone


def test_what_is_wrong_with_a_line_is_one_line_and_the_others_are_answered(talk, tmp_path):
    lines = [
        "/image no.png",
        "/image",
        "/rest",
        "<image> and <image>?",
        f"/image {WORDS}",
        "Read the text.",
        "red " * 3000,
    ]
    code, out, err = talk(lines)
    assert code == 1 and len(out) == 1
    for line, message in zip(
        err[1:],
        [
            "no.png: no such file",
            "/image: not a command; there are /image FILE, /reset and /quit",
            "/rest: not a command",
            "2 <image> in the text but 0 picture(s)",
            "but the model has 2048 positions; /reset begins anew",
        ],
        strict=True,
    ):
        assert line.startswith("error: ") and message in line


def test_an_answer_that_is_interrupted_ends_and_the_conversation_goes_on(talk, demo_model, monkeypatch):
    generate, calls = type(demo_model).generate, []

    def interrupted(self, *arguments, streamer, **options):
        calls.append(options["input_ids"].shape[1])
        if len(calls) == 1:
            raise KeyboardInterrupt
        return generate(self, *arguments, streamer=streamer, **options)

    monkeypatch.setattr(type(demo_model), "generate", interrupted)
    code, out, err = talk(["Read the text.", "Read the text."], "--image_files", WORDS)
    assert code == 0 and len(out) == 1 and err[1:] == ["stopped"]
    assert calls[0] == calls[1], "the first question is forgotten, and its picture is there still"


def test_the_end_of_the_input_is_the_end(talk):
    assert talk([])[:2] == (0, [])


def test_a_wrong_checkpoint_is_said_before_a_line_is_read(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2VLForConditionalGeneration"]}')
    assert chat.main(["--model_path", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is Qwen2-VL, which is not supported; supported: DeepSeek-VL2" in line
