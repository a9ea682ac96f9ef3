"""The sweep runs on a small checkpoint; its speeds are not checked."""

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def plot_speed(load_tool):
    return load_tool("plot_speed")


FLAGS = [
    "--tiles",
    "2",
    "1",
    "--prompt_tokens",
    "9",
    "20",
    "--new_tokens",
    "2",
    "--repeats",
    "1",
    "--device",
    "cpu",
]


def test_table_and_figure(plot_speed, golden, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plot_speed.benchmark, "MATMUL_SIZE", 64)
    monkeypatch.setattr(plot_speed.benchmark, "READ_BYTES", 1_000_000)
    file = tmp_path / "speed.png"
    assert plot_speed.main([str(golden / "mla_greedy"), *FLAGS, "--output", str(file)]) == 0
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    expected = [
        ("prefill", "9 tokens"),
        ("prefill", "20 tokens"),
        ("decode", "9 tokens"),
        ("decode", "20 tokens"),
    ]
    assert rows == [
        [f"| {step}", number] for step, number in [*expected, ("vision", "1 tiles"), ("vision", "2 tiles")]
    ]
    with Image.open(file) as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt_tokens", "0"], "numbers are at least 1, --new_tokens at least 2"),
        (["--prompt_tokens", "9", "5000"], "5000 tokens"),
        (["--output", "speed.txt"], "speed.txt"),
        (["--lengths", "9"], "unrecognized arguments: --lengths 9; --help lists the flags"),
    ],
)
def test_mistakes_are_one_line(flags, message, plot_speed, golden, capsys, tmp_path):
    arguments = [str(golden / "mla_greedy"), *FLAGS, "--output", str(tmp_path / "speed.png"), *flags]
    assert plot_speed.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
