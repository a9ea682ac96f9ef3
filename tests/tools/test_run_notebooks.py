"""The notebooks run from start to end; what is committed of them is small and says nothing of one machine."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").rglob("*.ipynb"))
CHINESE = re.compile(r"^#+ .+ · .*[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("run_notebooks")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(notebook):
    """All that cells have printed, and the source."""
    for cell in code_cells(notebook):
        yield cell.source
        for output in cell.outputs:
            yield output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))


def test_all_notebooks_are_found():
    assert [file.name[0] for file in NOTEBOOKS] == ["1", "2", "3", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_start_to_end(tool, monkeypatch, file):
    monkeypatch.setenv("NOTEBOOK_STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # whatever else is installed
    notebook = tool.execute(file)
    committed = nbformat.read(file, as_version=4)
    kinds = [
        [[output.output_type for output in cell.outputs] for cell in code_cells(one)]
        for one in (notebook, committed)
    ]
    assert kinds[0] == kinds[1]
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(kinds[0]) + 1))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_is_committed_is_complete_small_and_of_no_machine(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert file.stat().st_size < 400_000
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "make notebooks executes them"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert not [
        text for text in texts_of(notebook) if re.search(r"(?<![\w.])/(tmp|home|root|work|usr)/", text)
    ]
    headings = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert headings and [line for line in headings if not CHINESE.match(line)] == []


def write(file, *sources):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(notebook, file)
    return file


def test_outputs_are_kept_without_the_standard_error(tool, tmp_path, capsys):
    source = "import os, sys\nprint(1)\nprint(2, file=sys.stderr)\nprint(os.environ['PADDLEMIX_VL2_KERNELS'])"
    file = write(tmp_path / "a.ipynb", source)
    assert tool.main([str(file)]) == 0
    assert capsys.readouterr().err == f"written: {file}\n"
    (cell,) = nbformat.read(file, as_version=4).cells
    assert [output.text for output in cell.outputs] == ["1\n0\n"] and "execution" not in cell.metadata
    assert list(tmp_path.iterdir()) == [file]


def test_mistakes_are_one_line_and_leave_the_file(tool, tmp_path, capsys):
    file = write(tmp_path / "a.ipynb", "x = 1", "1 / 0")
    before = file.read_bytes()
    assert tool.main([str(file)]) == 2 and tool.main([str(tmp_path / "none.ipynb")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {file}: a cell fails: ZeroDivisionError: division by zero"
    assert lines[1].startswith("error: ") and "none.ipynb" in lines[1] and len(lines) == 2
    assert file.read_bytes() == before
