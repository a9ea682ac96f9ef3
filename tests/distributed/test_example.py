"""An example that several processes run together says what one process says, once."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.distributed


def said(folder: Path, name: str) -> list[tuple[str, str]]:
    """Standard output and error of both processes."""
    return [
        tuple((folder / f"{name}{rank}.{kind}").read_text() for kind in ("out", "err")) for rank in (0, 1)
    ]


def test_the_first_process_says_what_one_process_says(folders, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import single_image_infer

    picture = str(ROOT / "examples" / "images" / "drawn" / "words.png")
    flags = ["--image_file", picture, "--question", "Read the text.", "--max_new_tokens", "16"]
    assert single_image_infer.main([*flags, "--backend", "paddle"]) == 0
    answer = capsys.readouterr().out
    (first, messages), second = said(folders(2), "greedy")
    assert first == answer and answer.strip()
    assert "loading" in messages and "exit code 0" in messages
    assert messages.count("experts over 2 processes, with the backend paddle\n") == 1
    assert second == ("", "exit code 0\n")


def test_sampling_without_a_seed_ends_in_all_processes(folders):
    """Where they drew different tokens, one would stop before the other, and wait for it."""
    (first, messages), second = said(folders(2), "sampled")
    assert first.strip() and "exit code 0" in messages
    assert second == ("", "exit code 0\n")


def test_the_kernels_are_refused(folders):
    for out, err in said(folders(2), "refused"):
        assert out == ""
        assert err.startswith("error: --backend cpu_kernels and --dtype int8 run all experts in one process;")
        assert "exit code 2" in err
