"""The pages say what is true: their code runs, and what they name is there."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "paddlemix_vl2"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CHANGELOG = ROOT / "CHANGELOG.md"  # it names what was before
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")} - {CHANGELOG})
# Page with a program -> what that prints.
PRINTED = {
    "adding_a_model.md": "ToyForCausalLM ToyProcessor\n17 image tokens, 4 new tokens\n",
    "adding_a_router.md": "weights of each token: 2, sum 1.000000\nthe router's weight has a gradient\n",
    "adding_a_metric.md": "captions: 0.0\nown question: 1.0\n",
}


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks_of(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_the_program_of_a_page_runs_by_itself(name, tmp_path):
    page = ROOT / "docs" / name
    program = tmp_path / "program.py"
    program.write_text("\n\n".join(blocks_of(page, "python")), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PADDLEMIX_VL2_KERNELS": "0"}
    command = [sys.executable, "-W", "ignore", program.name]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == PRINTED[name]
    assert f"```\n{PRINTED[name]}```" in text_of(page), "the page shows what its program prints"
    assert [path.name for path in tmp_path.iterdir()] == [program.name]


def test_the_code_of_the_pages_passes_lint():
    """Ruff sees the blocks of a page as one file."""
    for name in PRINTED:
        source = "\n\n".join(blocks_of(ROOT / "docs" / name, "python"))
        command = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "-"]
        # The blocks of a page import what they need where they need it.
        arguments = ["--ignore", "E402,I001,T20", "--stdin-filename", "page.py"]
        result = subprocess.run([*command, *arguments], input=source, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, section = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)$", text_of(file), re.MULTILINE) if section else []
        assert not section or section in {title.lower().replace(" ", "-") for title in titles}, target


FOLDERS = r"(?:paddlemix_vl2|configs|docs|examples|tests|tools)/"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_paths_on_a_page_are_there(page):
    """Those that begin with a folder of the repository, or with a part of the package."""
    parts = "|".join(path.stem for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_")
    pattern = rf"(?<![\w./~-])({FOLDERS}[\w./{{}},*+-]*|(?:{parts})/[\w./*]*)"
    missing = []
    for found in re.findall(pattern, text_of(page)):
        path = found.rstrip(".,")
        if re.search(r"NAME|[A-Z]{4,}|[{]", path) and "README" not in path:
            continue  # a name to put in
        if not any(list(base.glob(path)) for base in (ROOT, PACKAGE, PACKAGE / "models")):
            missing.append(path)
    assert missing == []


def test_modules_on_the_pages_can_be_imported():
    names = {name for page in PAGES for name in re.findall(r"\bpaddlemix_vl2(?:\.\w+)+", text_of(page))}
    assert len(names) > 10
    for name in names:
        module, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), last), name


def layers_of_the_tests():
    """``LAYERS`` of ``test_project.py``."""
    for node in ast.parse(text_of(ROOT / "tests" / "test_project.py")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "LAYERS":
            return ast.literal_eval(node.value)
    raise AssertionError("test_project.py has no LAYERS")


def test_the_import_ranks_are_those_that_are_enforced():
    section = text_of(CONTRIBUTING).partition("## Imports")[2]
    ranks = re.search(r"```\n(.*?)```", section, re.DOTALL)[1].splitlines()
    assert [set(rank.split()) for rank in ranks] == [set(rank) for rank in layers_of_the_tests()[:-1]]


def test_the_layout_has_every_part_of_the_package():
    section = text_of(CONTRIBUTING).partition("## Layout")[2].partition("## Imports")[0]
    rows = re.findall(r"^\| `([\w./]+)` \| \S.*\|$", section, re.MULTILINE)
    parts = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in PACKAGE.iterdir()
        if path.name[0] not in "_." and (path.is_dir() or path.suffix == ".py")
    }
    assert len(rows) == len(set(rows)) and set(rows) == parts


def test_the_glossary_has_words_of_the_code_only():
    section = text_of(CONTRIBUTING).partition("## Glossary")[2]
    words = {
        word for row in section.splitlines() if row.startswith("|") for word in re.findall(r"`(\w+)`", row)
    }
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert len(words) > 50
    assert sorted(word for word in words if not re.search(rf"\b{word}\b", source)) == []
