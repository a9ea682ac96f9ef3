"""The command prints a row for every model and placement, and says in one line what is wrong."""

import pytest

from paddlemix_vl2.cli import estimate


def rows(text: str) -> list[list[str]]:
    """The cells of the printed table, without its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_the_three_models_by_default(capsys):
    assert estimate.main([]) == 0
    text = capsys.readouterr().out
    header, *_ = text.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["GB", "weights as", *estimate.COLUMNS]
    cells = rows(text)
    assert [row[:2] for row in cells] == [
        [f"{name}, {device}", weights]
        for name in ("tiny", "small", "base")
        for device, weights in [
            ("cpu", "float32"),
            ("cpu", "bfloat16"),
            ("cpu", "int8"),
            ("gpu", "float32"),
            ("gpu", "bfloat16"),
        ]
    ]
    # 3,370,501,440 parameters of four bytes; 12 layers of 2,048 x 2 x 1,280 float32.
    assert cells[0][2:4] == ["13.48", "0.25"]
    for row in cells:
        weights, cache, *phases, process, _, answering = map(float, row[2:])
        # Each figure is rounded to 0.01.
        assert answering == pytest.approx(weights + cache + max(phases) + process, abs=0.03)


def test_files_folders_and_flags(golden, capsys):
    case = golden / "mla_greedy"
    assert estimate.main([str(case), str(case / "config.json"), "tiny", "--positions", "1024"]) == 0
    folder, file, tiny = (rows(text) for text in split(capsys.readouterr().out, 5))
    assert [row[1:] for row in folder] == [row[1:] for row in file]
    assert estimate.main(["tiny", "--positions", "1024", "--batch_size", "8", "--chunk_size", "128"]) == 0
    larger = rows(capsys.readouterr().out)
    cache = estimate.COLUMNS.index("cache") + 2
    assert float(larger[0][cache]) == pytest.approx(8 * float(tiny[0][cache]), abs=0.05)  # 8 x 0.13, rounded


def split(text: str, count: int) -> list[str]:
    """Tables of ``count`` rows each, from one table."""
    header, lines = text.splitlines()[:2], text.splitlines()[2:]
    parts = [lines[first : first + count] for first in range(0, len(lines), count)]
    return ["\n".join([*header, *part]) for part in parts]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["tiny", "--positions", "0"], "positions is 0; it must be at least 1"),
        (["tiny", "--positions", "5000"], "5000 positions, but the model has 4096"),
        (["tiny", "--batch_size", "many"], "--batch_size: invalid int value: 'many'; --help lists the flags"),
        (["tiny", "--size", "1"], "--help lists the flags"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert estimate.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_a_file_that_is_no_config(tmp_path, capsys):
    (tmp_path / "config.json").write_text("[]")
    assert estimate.main([str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_outside_the_repository_the_published_models_are_not_known(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(estimate, "GEOMETRIES", tmp_path)
    assert estimate.main(["tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: tiny: ") and line.endswith("name a config.json or a checkpoint folder")
