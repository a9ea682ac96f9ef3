"""The report is whole and true on the CPU, and no section takes the others with it. What only a GPU runs is
called with one that is made up."""

from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TITLES = ["Environment"]
TITLES += [f"Parity in {dtype}" for dtype in ("float32", "bfloat16", "float16")]
TITLES += [f"Precision of {dtype}" for dtype in ("bfloat16", "float16")]
TITLES += ["Memory", "Speed"]
SMALL = ["--device", "cpu", "--prompt_tokens", "20", "--new_tokens", "2", "--tiles", "1", "--repeats", "1"]


@pytest.fixture(scope="module")
def loaded(load_tool):
    return load_tool("gpu_check")


@pytest.fixture
def tool(loaded, monkeypatch):
    """The tool, with one short case and little to measure."""
    monkeypatch.setattr(loaded, "CASES", ("mla_greedy",))
    monkeypatch.setattr(loaded, "RECORDED_STEPS", 2)
    monkeypatch.setattr(loaded.benchmark, "MATMUL_SIZE", 64)
    monkeypatch.setattr(loaded.benchmark, "READ_BYTES", 1_000_000)
    loaded.float32_logits.cache_clear()
    return loaded


@pytest.fixture
def report(tool, tmp_path):
    """flags -> exit code and the lines of every section of the report."""

    def run(*flags: str) -> tuple[int, dict[str, list[str]]]:
        output = tmp_path / "report.md"
        code = tool.main([*SMALL, *flags, "--output", str(output)])
        assert list(tmp_path.iterdir()) == [output]
        return code, sections(output)

    return run


def sections(file) -> dict[str, list[str]]:
    first, *parts = file.read_text(encoding="utf-8").split("\n## ")
    assert first.startswith("# ")
    parts = [part.splitlines() for part in parts]
    return {title: [line for line in lines if line] for title, *lines in parts}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_section_is_written(report, capsys):
    code, written = report()
    assert code == 0 and list(written) == TITLES
    assert "every section ran" in capsys.readouterr().out
    environment = dict(cells(line) for line in written["Environment"])
    assert environment["Paddle"].startswith("3.") and environment["device"] == "cpu"
    assert environment["checkpoint"] == "paddlemix_vl2/demo/checkpoint"
    case, worst, mean, allowed, same = cells(written["Parity in float32"][2])
    # As test_golden.py has it: sums in another order.
    assert case == "mla_greedy" and float(mean) <= float(worst) < 1e-4 < float(allowed)
    assert same == "4 of 4"
    for title in TITLES[2:6]:
        assert written[title] == [
            f"Left out: Paddle does not multiply {title.split()[-1]} on this device (cpu)."
        ]
    steps = [cells(line) for line in written["Speed"][2:5]]
    assert [step[0] for step in steps] == ["vision, 1 tiles", "prefill, 20 tokens", "decode, 1 token"]
    assert all(float(number) > 0 for step in steps for number in (step[1], step[2], step[5]))
    assert [len(cells(line)) for line in written["Memory"]] == [2] * 6


def test_a_failing_section_loses_no_other(tool, report, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError(
            "C++ Traceback\n----------\nError Message Summary:\n----------\nOut of\n  memory (at x)"
        )

    monkeypatch.setattr(tool.benchmark, "prompt", fail)
    monkeypatch.setattr(tool.benchmark, "run", fail)
    monkeypatch.setitem(tool.ALLOWED, "float32", 1e-12)
    code, written = report()
    assert code == 1 and list(written) == TITLES
    assert "Parity in float32, Memory, Speed failed" in capsys.readouterr().out
    *table, failure = written["Parity in float32"]
    assert len(table) == 3 and cells(table[2])[0] == "mla_greedy"
    assert failure.startswith(
        "**Failed:** ValueError: the mean error is too large in mla_greedy (tools/gpu_check.py"
    )
    assert len(written["Memory"]) == 5 and written["Memory"][-1].startswith(
        "**Failed:** RuntimeError: Out of"
    )
    (failure,) = written["Speed"]
    assert failure.startswith(
        "**Failed:** RuntimeError: Out of memory (at x) (tests/tools/test_gpu_check.py, line "
    )


def test_what_was_measured_outlives_an_interruption(tool, tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    output = tmp_path / "report.md"
    with pytest.raises(KeyboardInterrupt):
        tool.write_report(output, {"one": lambda: iter(["1"]), "two": interrupted, "three": interrupted})
    assert sections(output) == {"one": ["1"], "two": ["Not reached."], "three": ["Not reached."]}


@pytest.fixture
def demo(tool):
    return tool.ROOT / "paddlemix_vl2" / "demo" / "checkpoint"


def test_the_same_weights_are_as_precise(tool, demo):
    rows = [cells(line) for line in tool.precision(demo, 3, "float32")][2:]
    assert [row[0] for row in rows] == ["shapes", "words", "chart"]
    assert all(float(row[3]) == float(row[4]) == 0 and row[5].startswith("0 of ") for row in rows)


def test_other_weights_are_not(tool, demo, monkeypatch):
    """With the head's sign turned every logit is wrong by twice itself, and every token another one."""
    load = tool.load

    def turned(folder, dtype):
        model = load(folder, "float32")
        if dtype != "float32":
            head = model.language.lm_head.weight
            head.set_value(-head)
        return model

    monkeypatch.setattr(tool, "load", turned)
    monkeypatch.setattr(tool.device, "can_compute", lambda dtype: True)
    for row in [cells(line) for line in tool.precision(demo, 3, "bfloat16")][2:]:
        assert float(row[3]) == pytest.approx(2 * float(row[2]), rel=0.1)  # of two digits each
        changed, all_tokens = row[5].split(" of ")
        assert changed == all_tokens != "0"


def test_greedy_logits_are_those_of_generate(tool, demo):
    """The tool's loop, with the cache, against the package's."""
    model = tool.load(demo, "float32")
    batch = tool.ask(tool.DeepseekVLV2Processor.from_pretrained(demo), tool.PICTURES[0])
    logits = tool.answer_logits(model, batch, 6)
    ids, _ = model.generate(**batch, max_new_tokens=6)
    assert logits.argmax(axis=1).tolist() == ids[0].tolist()
    assert np.array_equal(tool.answer_logits(model, batch, 6, ids[0].tolist()), logits)


def test_a_gpu_is_described(tool, demo, monkeypatch):
    cuda = tool.paddle.device.cuda
    properties = SimpleNamespace(name="A GPU", major=8, minor=6, total_memory=24e9)
    resets = []
    monkeypatch.setattr(tool.device, "is_gpu", lambda: True)
    monkeypatch.setattr(tool.benchmark, "is_gpu", lambda: True)
    monkeypatch.setattr(cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda: 5)
    monkeypatch.setattr(cuda, "reset_max_memory_allocated", lambda: resets.append(1))
    lines = dict(cells(line) for line in tool.environment(demo))
    assert lines["name"] == "A GPU" and lines["compute capability"] == "8.6" and lines["memory"] == "24.00 GB"
    assert {"CUDA, cuDNN of Paddle", "driver", "NVIDIA_TF32_OVERRIDE"} <= lines.keys()
    assert tool.peak_memory() == 5 and resets == [1]


def test_without_a_gpu(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool.paddle, "is_compiled_with_cuda", lambda: False)
    output = tmp_path / "report.md"
    assert tool.main(["--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: device 'gpu': this Paddle is a CPU build") and not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_path", "./nowhere"], "nowhere"),
        (["--prompt_tokens", "5000"], "5000 tokens"),
        (["--output", "/nowhere/report.md"], "/nowhere/"),
    ],
)
def test_mistakes_are_one_line(flags, message, tool, tmp_path, capsys):
    assert tool.main([*SMALL, "--output", str(tmp_path / "report.md"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert list(tmp_path.iterdir()) == []
