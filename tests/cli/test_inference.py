"""The command line without a real model: what reaches ``generate``, what goes where, how mistakes end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import paddlemix_vl2
from paddlemix_vl2 import auto
from paddlemix_vl2.cli import inference
from paddlemix_vl2.cli.arguments import OneLineParser

ROOT = Path(__file__).resolve().parents[2]
SHAPES = str(ROOT / "examples" / "images" / "shapes.png")
ANSWER = "有 <|ref|>the circle<|/ref|><|det|>[[94, 167, 406, 583], [1, 2, 3]]<|/det|> 👍🏽"


class FakeModel:
    """Answers ``answer``; keeps what it was asked."""

    answer = ANSWER
    calls: list

    @classmethod
    def from_pretrained(cls, path, dtype, backend, dispatcher=None):
        cls.calls = [{"path": path, "dtype": dtype, "backend": backend}]
        return cls()

    def generate(self, streamer, **arguments):
        self.calls.append(arguments)
        processor = paddlemix_vl2.DeepseekVLV2Processor.from_pretrained(self.calls[0]["path"])
        ids = [*processor.tokenizer.encode(self.answer), processor.tokenizer.eos_token_id]
        for token_id in ids:
            streamer.put(np.array([token_id]))
        streamer.end()
        return paddle.to_tensor([ids]), paddle.zeros([1, 1])


@pytest.fixture
def fake_model(monkeypatch):
    monkeypatch.setattr(auto, "AutoModelForCausalLM", FakeModel)
    monkeypatch.setattr(FakeModel, "answer", ANSWER)
    return FakeModel


@pytest.fixture
def run(example, random_checkpoint, fake_model, capsys):
    """Run a script; its exit code, standard output and standard error lines."""

    def run_script(name, *flags, model_path=random_checkpoint):
        capsys.readouterr()
        code = example(name).main(["--model_path", str(model_path), *map(str, flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run_script


def test_the_answer_is_on_stdout_and_everything_else_on_stderr(run):
    code, out, err = run("single_image_infer", "--image_file", SHAPES, "--question", "What?")
    assert code == 0
    assert out == ANSWER + "\n"
    assert err[0].startswith("loading ") and "in float32 on the CPU" in err[0]
    assert "1 picture(s)" in err[1]
    assert "tokens in" in err[2]
    assert err[3] == "left out: box [1, 2, 3] of 'the circle': 3 value(s), not 4"
    assert err[4] == "1 box(es) in the answer; --output FILE draws them"
    assert len(err) == 5


def test_without_flags_generation_is_greedy(run, fake_model):
    run("single_image_infer", "--image_file", SHAPES, "--question", "What?")
    asked = fake_model.calls[1]
    assert asked["do_sample"] is False and asked["repetition_penalty"] == 1.0
    assert (asked["max_new_tokens"], asked["chunk_size"], asked["seed"]) == (512, None, None)
    assert asked["input_ids"].shape[0] == 1 and asked["images"].shape[1] > 1


SAMPLING = ["--temperature", 0.4, "--top_p", 0.9, "--top_k", 20, "--repetition_penalty", 1.1, "--seed", 7]


def test_flags_reach_generate(run, fake_model):
    flags = ["--max_new_tokens", 9, "--chunk_size", 100, "--dtype", "float32", "--device", "cpu", *SAMPLING]
    assert run("single_image_infer", "--image_file", SHAPES, "--question", "What?", *flags)[0] == 0
    loaded, asked = fake_model.calls
    assert loaded["dtype"] == "float32"
    expected = {"do_sample": True, "temperature": 0.4, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    expected |= {"seed": 7, "max_new_tokens": 9, "chunk_size": 100}
    assert {name: asked[name] for name in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "samples"),
    [(["--top_p", 0.5], True), (["--top_k", 5], True), (["--temperature", 0], False), (["--seed", 3], False)],
    ids=str,
)
def test_sampling_starts_with_its_first_flag_and_temperature_zero_is_greedy(run, fake_model, flags, samples):
    run("single_image_infer", "--image_file", SHAPES, "--question", "What?", *flags)
    assert fake_model.calls[1]["do_sample"] is samples


@pytest.mark.slow
def test_chunked_prefilling_is_the_default_of_its_example(run, fake_model):
    flags = ["--image_file", SHAPES, "--question", "What?"]
    run("increment_prefilling_infer", *flags)
    assert fake_model.calls[1]["chunk_size"] == 512
    run("increment_prefilling_infer", *flags, "--chunk_size", 64)
    assert fake_model.calls[1]["chunk_size"] == 64


def prompt_of(fake_model):
    processor = paddlemix_vl2.DeepseekVLV2Processor.from_pretrained(fake_model.calls[0]["path"])
    tokenizer, ids = processor.tokenizer, fake_model.calls[1]["input_ids"][0].tolist()
    shortened = [
        token_id
        for index, token_id in enumerate(ids)
        if token_id != tokenizer.image_token_id or ids[index - 1] != token_id
    ]
    return tokenizer.decode(shortened).replace("<｜begin▁of▁sentence｜>", "")


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("What is new?", "<|User|>: <image>\n<image>\nWhat is new?\n\n<|Assistant|>:"),
        ("From <image> to <image>?", "<|User|>: From <image> to <image>?\n\n<|Assistant|>:"),
    ],
)
def test_pictures_come_first_unless_the_question_places_them(run, fake_model, question, prompt):
    assert run("multi_image_infer", "--image_files", SHAPES, SHAPES, "--question", question)[0] == 0
    assert prompt_of(fake_model) == prompt


def test_a_system_prompt_reaches_the_model(run, fake_model):
    flags = ["--image_file", SHAPES, "--question", "What?", "--system_prompt", "You are brief."]
    run("single_image_infer", *flags)
    assert prompt_of(fake_model).startswith("You are brief.")


def test_numbered_pictures_follow_the_listed_ones():
    parser = OneLineParser("")
    inference.add_question_flags(parser)
    inference.add_several_pictures(parser)
    flags = ["--model_path", "m", "--question", "q", "--image_files", "a", "b", "--image_file_2", "c"]
    assert inference.list_pictures(parser.parse(flags)) == ["a", "b", "c"]


def test_boxes_are_drawn_and_saved(run, tmp_path):
    output = tmp_path / "new" / "boxes.png"
    flags = ["--image_file", SHAPES, "--question", "Where?", "--output", output]
    code, _, err = run("single_image_infer", *flags)
    assert code == 0 and err[-1] == f"1 box(es) drawn: {output}"
    with Image.open(SHAPES) as before, Image.open(output) as after:
        difference = np.asarray(before.convert("RGB")) != np.asarray(after)
    # int(94 / 999 * 640) = 60, int(406 / 999 * 640) = 260; the height of 480 likewise.
    assert difference[79:282, 59:262].any()
    assert difference[150, 60].any() and not difference[150, 100].any()


def test_without_boxes_nothing_is_written(run, fake_model, tmp_path):
    fake_model.answer = "just words"
    output = tmp_path / "boxes.png"
    code, out, err = run("single_image_infer", "--image_file", SHAPES, "--question", "?", "--output", output)
    assert (code, out) == (0, "just words\n")
    assert err[-1] == f"no boxes in the answer; {output} is not written"
    assert not output.exists()


@pytest.mark.parametrize(("flags", "size"), [([], (90, 30)), (["--draw_on", "1"], (640, 480))])
def test_boxes_of_several_pictures_are_drawn_on_the_last_or_the_named_one(run, tmp_path, flags, size):
    other, output = tmp_path / "other.png", tmp_path / "boxes.png"
    Image.new("RGB", (90, 30)).save(other)
    pictures = ["--image_files", SHAPES, other]
    assert run("multi_image_infer", *pictures, "--question", "?", "--output", output, *flags)[0] == 0
    with Image.open(output) as saved:
        assert saved.size == size


def write_bad_files(folder):
    (folder / "text.jpg").write_text("not a picture")
    (folder / "cut.png").write_bytes(Path(SHAPES).read_bytes()[:2000])
    (folder / "empty").mkdir()


ASK = ["--image_file", SHAPES, "--question", "What?"]
MISTAKES = {
    "no flags": ([], "required: --question, --image_file"),
    "unknown flag": ([*ASK, "--imagefile", "x"], "unrecognized arguments: --imagefile"),
    "no tokens": ([*ASK, "--max_new_tokens", "0"], "--max_new_tokens: '0' is not a whole number from 1 up"),
    "no chunk": ([*ASK, "--chunk_size", "-4"], "--chunk_size"),
    "unknown dtype": ([*ASK, "--dtype", "float64"], "--dtype: invalid choice: 'float64'"),
    "16 bits on the CPU": ([*ASK, "--device", "cpu", "--dtype", "bfloat16"], "cannot multiply bfloat16"),
    "unknown device": ([*ASK, "--device", "abacus"], "device 'abacus' is unknown"),
    "top_p": ([*ASK, "--top_p", "1.5"], "top_p is 1.5; it must be"),
    "temperature": ([*ASK, "--temperature", "-1"], "temperature is -1.0; it must be"),
    "missing picture": (["--image_file", "no.jpg", "--question", "?"], "no.jpg: no such file"),
    "not a picture": (["--image_file", "{bad}/text.jpg", "--question", "?"], "text.jpg: not a picture"),
    "cut picture": (
        ["--image_file", "{bad}/cut.png", "--question", "?"],
        "cut.png: cannot be read as a picture",
    ),
    "folder": (["--image_file", "{bad}/empty", "--question", "?"], "empty: is a folder"),
    "output": ([*ASK, "--output", "boxes.txt"], "boxes.txt: cannot write .txt"),
    "processes that are not there": (
        [*ASK, "--expert_parallel_degree", "2"],
        "--expert_parallel_degree is 2, but the number of processes is 1; they answer",
    ),
    "experts that cannot be divided": (
        [*ASK, "--expert_parallel_degree", "3"],
        "expert_parallel_degree is 3; it must divide the model's 8 routed experts",
    ),
    "kernels for some experts": (
        [*ASK, "--expert_parallel_degree", "2", "--dtype", "int8"],
        "--dtype int8 run all experts in one process",
    ),
    "no experts at all": ([*ASK, "--expert_parallel_degree", "0"], "'0' is not a whole number from 1 up"),
    "an adapter of some experts": (
        [*ASK, "--expert_parallel_degree", "2", "--adapter_path", "x"],
        "merge the adapter first",
    ),
    "too many <image>": (["--image_file", SHAPES, "--question", "<image><image>"], "2 <image>"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_two(run, fake_model, tmp_path, flags, message):
    write_bad_files(tmp_path)
    fake_model.calls = []
    code, out, err = run("single_image_infer", *[str(flag).format(bad=tmp_path) for flag in flags])
    assert (code, out) == (2, "")
    assert len(err) == 1 and err[0].startswith("error: ") and message in err[0]
    assert fake_model.calls == [], "a mistake must be told before the model is loaded"


@pytest.mark.parametrize(
    ("model_path", "message"), [("/no/such/folder", "/no/such/folder"), ("{bad}/empty", "empty")]
)
def test_a_wrong_model_path_is_one_line(run, tmp_path, model_path, message):
    write_bad_files(tmp_path)
    code, out, err = run("single_image_infer", *ASK, model_path=model_path.format(bad=tmp_path))
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: ") and message in err[0]


def test_several_pictures_need_one(run):
    code, _, err = run("multi_image_infer", "--question", "?")
    assert (code, err) == (
        2,
        ["error: no picture; give --image_files FILE FILE ... or --image_file_1 FILE and so on"],
    )
    code, _, err = run("multi_image_infer", "--image_file_1", SHAPES, "--question", "?", "--draw_on", "2")
    assert (code, err) == (2, ["error: --draw_on 2: there are only 1 picture(s)"])


def test_an_error_of_many_lines_is_told_in_one(run, fake_model, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("first\n  second\nthird")

    monkeypatch.setattr(fake_model, "generate", fail)
    code, _, err = run("single_image_infer", *ASK)
    assert (code, err[-1]) == (2, "error: first second third")


def test_an_interrupt_ends_without_a_traceback(run, fake_model, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake_model, "generate", interrupt)
    code, _, err = run("single_image_infer", *ASK)
    assert (code, err[-1]) == (130, "error: interrupted")


def test_a_missing_paddle_is_explained(example, capsys, monkeypatch):
    def fail(arguments, pictures):
        raise ModuleNotFoundError("No module named 'paddle'", name="paddle")

    monkeypatch.setattr(inference, "answer", fail)
    assert example("single_image_infer").main(["--model_path", "m", *ASK]) == 2
    assert (
        'paddle is not installed; in the repository run: pip install -e ".[cpu]"' in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["single_image_infer", "multi_image_infer", "increment_prefilling_infer"])
def test_help_is_instant_and_lists_the_flags(name):
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    # 0.15 s on two cores; importing Paddle and PaddleNLP takes more than 4 s.
    assert time.perf_counter() - start < 3
    assert result.returncode == 0 and result.stderr == ""
    for flag in ("model_path", "question", "dtype", "max_new_tokens", "chunk_size", "device", "output"):
        assert f"--{flag}" in result.stdout


def test_an_output_that_cannot_be_written_is_said_before_the_model_runs(run, fake_model, tmp_path):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for output, message in [
        ("folder.png", "is a folder; name a file in it"),
        ("file.txt/x.png", "is not a folder"),
    ]:
        flags = ["--image_file", SHAPES, "--question", "What?", "--output", tmp_path / output]
        code, out, err = run("single_image_infer", *flags)
        assert (code, out, len(err)) == (2, "", 1) and message in err[0]


def test_processor_and_model_must_cut_tiles_alike(run, random_checkpoint, tmp_path):
    for file in random_checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((random_checkpoint / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({**settings, "downsample_ratio": 3}))
    flags = ["--image_file", SHAPES, "--question", "What?"]
    code, _, err = run("single_image_infer", *flags, model_path=tmp_path)
    assert code == 2 and "makes 9 x 9 image tokens of a tile, config.json 14 x 14" in err[0]


def test_an_empty_question(run):
    code, _, err = run("single_image_infer", "--image_file", SHAPES, "--question", " ")
    assert (code, err) == (2, ["error: --question is empty"])
