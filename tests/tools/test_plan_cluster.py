"""The tool prints plans, tables and launch lines, and says in one line what is wrong."""

import re

import pytest

from paddlemix_vl2.training.recipe import load_recipe
from tests.test_project import CLUSTER_RECIPES, ROOT

RECIPE = str(ROOT / "configs/train/small_stage2_pretrain.yaml")
FOUR_NODES = [RECIPE, "--nodes", "4", "--rows", "2304", "--expert_parallel_degree", "8"]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("plan_cluster")


def test_one_recipe(tool, capsys):
    assert tool.main(FOUR_NODES) == 0
    text = capsys.readouterr().out
    assert "Rows per step: 2,304 = 1 per device x 72 accumulated x 32 devices" in text
    parts = [float(size) for size in re.findall(r"^  (?!all).* ([\d.]+) GB$", text, re.MULTILINE)]
    total = float(re.search(r"^  all +([\d.]+) GB, fits$", text, re.MULTILINE)[1])
    assert total == pytest.approx(sum(parts), abs=0.05)  # each figure is rounded to 0.01
    assert "Steps: 85,714, " in text


def test_the_launch_line_is_a_command_for_that_plan(tool, capsys):
    assert tool.main(FOUR_NODES) == 0
    launcher, command = capsys.readouterr().out.splitlines()[-2:]
    assert "--nnodes 4 --master HOST:PORT --devices 0,1,2,3,4,5,6,7" in launcher
    script, file, *changes = command.split()
    assert (ROOT / script).is_file()
    assert changes == [
        "gradient_accumulation_steps=72",
        "expert_parallel_degree=8",
        "resume_from_checkpoint=auto",
    ]
    settings = load_recipe(file, [change for change in changes if not change.startswith("expert")])
    assert settings.gradient_accumulation_steps == 72


def test_what_does_not_fit(tool, capsys):
    base = RECIPE.replace("small", "base")
    flags = [base, "--rows", "3360", "--expert_parallel_degree", "8"]
    assert tool.main(flags) == 0
    assert "GB, DOES NOT FIT" in capsys.readouterr().out
    assert tool.main([*flags, "--memory", "141"]) == 0
    assert "GB, fits" in capsys.readouterr().out


def test_better_hardware_is_faster(tool, capsys):
    days = []
    for extra in ([], ["--peak", "624"], ["--utilisation", "0.56"], ["--tiles", "0"]):
        assert tool.main([*FOUR_NODES, *extra]) == 0
        days.append(float(re.search(r"([\d.]+) days", capsys.readouterr().out)[1]))
    assert days[1] == days[2] == pytest.approx(days[0] / 2, abs=0.1)
    assert days[3] < days[0]


def documented(table: str) -> bool:
    return table.strip() in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_the_papers_table_is_the_documented_one(tool, capsys):
    assert tool.main(["--paper"]) == 0
    assert documented(capsys.readouterr().out)


def test_the_table_of_the_recipes_for_clusters_is_the_documented_one(tool, capsys):
    assert tool.main([str(path) for path in CLUSTER_RECIPES]) == 0
    assert documented(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either recipes or --paper; --help lists the flags"),
        (["nowhere.yaml"], "nowhere.yaml: no such recipe"),
        ([RECIPE, "--paper"], "give either recipes or --paper"),
        ([RECIPE, "--nodes", "0"], "--nodes is 0; it must be at least 1"),
        ([RECIPE, "--utilisation", "0"], "--utilisation is 0; it must be above 0"),
        (
            [RECIPE, "--nodes", "33", "--rows", "2304"],
            "2304 rows per step are no multiple of 1 per device x 264",
        ),
        ([RECIPE, "--expert_parallel_degree", "3"], "8 devices are no multiple of expert_parallel_degree 3"),
    ],
)
def test_mistakes_are_one_line(tool, flags, message, capsys):
    assert tool.main(flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
