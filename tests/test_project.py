"""Rules of the repository that no single module can show: imports point one way, everything loads, files stay
small."""

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import paddlemix_vl2
from paddlemix_vl2.configuration import DeepseekVLV2Config
from paddlemix_vl2.training.cluster import PAPER_RUNS, Cluster, plan_cluster
from paddlemix_vl2.training.memory import Division
from paddlemix_vl2.training.plan import describe
from paddlemix_vl2.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "paddlemix_vl2"
SOURCES = sorted(PACKAGE.rglob("*.py"))

SHARED = {"configuration", "image_layout", "device", "hub", "costs", "keys"}
# What each part of the package may import of it. A new part needs a row.
MAY_IMPORT = {
    "image_layout": set(),
    "device": set(),
    "hub": set(),
    "keys": set(),
    "configuration": {"image_layout"},
    "costs": {"configuration"},
    "memory": {"configuration", "checkpoints"},
    "processing": SHARED,
    "checkpoints": SHARED,
    "generation": SHARED,
    "demo": {"configuration", "image_layout", "processing", "generation"},
    "data": {"configuration", "image_layout", "keys", "processing", "generation", "demo"},
    "models": SHARED | {"checkpoints", "generation"},
    "evaluation": {"data", "generation", "keys", "processing"},
    "answering": {"processing", "generation", "models"},
    "server": SHARED | {"answering", "processing", "generation"},
    "web": {"processing", "generation"},
    "figures": SHARED | {"processing", "models", "training"},
    "distributed": {"checkpoints", "models"},
    "training": SHARED | {"distributed", "checkpoints", "data", "models", "processing"},
    "__init__": {"device"},
}


def relative(path):
    return str(path.relative_to(ROOT))


def part_of(path):
    """The part of the package that a file belongs to: ``models`` for ``paddlemix_vl2/models/moe.py``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path):
    """Absolute dotted names that a file imports, also those inside functions."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def test_the_import_reader_sees_every_form(tmp_path, monkeypatch):
    file = tmp_path / "paddlemix_vl2" / "models" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    from i.j import k\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert sorted(imported_names(file)) == [
        "a.b",
        "c.d",
        "i.j.k",
        "paddlemix_vl2.f.g",
        "paddlemix_vl2.models.e",
    ]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_point_one_way(path):
    own = part_of(path)
    assert own in MAY_IMPORT, f"{own}: say in MAY_IMPORT what it may import"
    names = [name.split(".") for name in imported_names(path)]
    parts = {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "paddlemix_vl2"}
    assert parts - {own} <= MAY_IMPORT[own], (
        f"{own} must not import {sorted(parts - {own} - MAY_IMPORT[own])}"
    )
    assert not {name[0] for name in names} & {"examples", "tools", "tests"}


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(path) == "models"], ids=relative)
def test_models_know_of_no_processes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(imported_names(path)) - {"paddle.distributed.fleet.utils.recompute"}  # where Paddle keeps it
    assert not any("distributed" in name for name in names)
    assert not any(isinstance(node, ast.Attribute) and node.attr == "distributed" for node in ast.walk(tree))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_can_be_imported(path):
    importlib.import_module(module_name(path))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.py")), ids=relative)
def test_examples_leave_importing_paddle_to_the_package(path):
    """The package sets what MKL and OpenMP read when they are loaded; Paddle first would be too early."""
    assert not {name.split(".")[0] for name in imported_names(path)} & {"paddle", "paddlenlp"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_examples_in_docstrings_are_true():
    results = [doctest.testmod(importlib.import_module(module_name(path))) for path in SOURCES]
    assert sum(result.attempted for result in results) >= 4, "the search found too little"
    assert sum(result.failed for result in results) == 0


def test_every_public_name_is_there():
    assert all(hasattr(paddlemix_vl2, name) for name in paddlemix_vl2.__all__)
    assert not hasattr(paddlemix_vl2, "no_such_name")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_package_prints_nothing(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if getattr(call.func, "id", None) == "print"]


def test_files_stay_small():
    files = [
        path
        for part in ("paddlemix_vl2", "examples", "tools", "tests")
        for path in (ROOT / part).rglob("*.py")
    ]
    assert len(files) > 40, "the search found too little"
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


MODEL_CONFIGS = sorted((ROOT / "configs" / "model").rglob("*.json"))
RECIPES = sorted((ROOT / "configs" / "train").rglob("*.yaml"))
CLUSTER_RECIPES = [path for path in RECIPES if path.parent.name == "clusters"]
NUM_RECIPES = 11 + 3 * 4  # of the demo; three stages and one with adapters for each published model
NUM_CLUSTER_RECIPES = 2 * (5 + 4)  # stages 2 and 3 of VL2-Small and VL2


def test_all_configs_are_found():
    assert [path.stem for path in MODEL_CONFIGS] == ["base", "demo", "small", "tiny"]
    assert len(CLUSTER_RECIPES) == NUM_CLUSTER_RECIPES
    assert len(RECIPES) == NUM_RECIPES + NUM_CLUSTER_RECIPES
    files = {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert files == {*MODEL_CONFIGS, *RECIPES}, "a new kind of config needs its own test"


@pytest.mark.parametrize("path", MODEL_CONFIGS, ids=relative)
def test_every_config_loads_and_keeps_its_values(path):
    written, read = json.loads(path.read_text()), DeepseekVLV2Config.from_json(path).to_dict()
    assert _missing(written, read) == []


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_every_recipe_can_be_planned(path, tmp_path, monkeypatch):
    """From the repository's root, without its weights and data; reading and planning write nothing."""
    monkeypatch.chdir(ROOT)
    arguments = load_recipe(path, [f"output_dir={tmp_path / 'output'}"])
    text = describe(arguments)
    assert f"Steps: {arguments.max_steps:,}" in text and "Memory per process" in text
    assert list(tmp_path.iterdir()) == []


# arXiv 2412.10302, table 2: learning rate, tokens in 10^9 and rows per step of the three stages.
PAPER = {
    "tiny": [(5.4e-4, 2.0, 256), (5.4e-4, 798.5, 2304), (3.0e-5, 19.5, 64)],
    "small": [(4.2e-4, 2.0, 256), (4.2e-4, 808.9, 2304), (1.4e-5, 20.0, 64)],
    "base": [(4.5e-4, 2.0, 256), (4.5e-4, 796.5, 3360), (2.0e-5, 19.5, 64)],
}
STAGES = [("stage1_align", "cosine"), ("stage2_pretrain", "step"), ("stage3_finetune", "constant")]


@pytest.mark.parametrize("model", PAPER)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_recipes_have_the_papers_figures(model, stage):
    (name, schedule), (rate, tokens, rows) = STAGES[stage - 1], PAPER[model][stage - 1]
    file = ROOT / "configs" / "train" / f"{model}_{name}.yaml"
    arguments = load_recipe(file)
    processes = int(re.search(r"^# Processes: (\d+)", file.read_text(), re.MULTILINE)[1])
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert batch * processes == rows == PAPER_RUNS[model].rows[stage - 1]
    assert arguments.max_steps == round(tokens * 1e9 / (rows * 4096))
    assert (arguments.learning_rate, arguments.schedule) == (rate, schedule)
    parts = arguments.vision, arguments.projector, arguments.language
    assert [part.learning_rate_multiplier for part in parts] == [0.1, 1.0, 1.0]
    assert arguments.language.mode == ("frozen" if stage == 1 else "full")
    assert arguments.vision.mode == arguments.projector.mode == "full"
    assert arguments.packing is (stage > 1)
    assert arguments.supervise == ("answers" if stage == 3 else "text")
    assert arguments.aux_loss_alpha == (1e-4 if model == "base" else 1e-3)
    assert arguments.bias_update_speed == (0.001 if (model, stage) == ("base", 2) else 0)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.95, 0.1)
    assert (arguments.max_grad_norm, arguments.max_seq_length, arguments.bf16_wanted) == (1.0, 4096, True)


@pytest.mark.parametrize("path", CLUSTER_RECIPES, ids=relative)
def test_recipes_for_clusters_change_no_more_than_the_degrees(path):
    """The batch is the paper's on that many nodes, and what does not fit into an A100 is said to be so."""
    text = path.read_text(encoding="utf-8")
    changes = yaml.safe_load(text)
    model, stage, nodes = re.fullmatch(r"(small|base)_stage([23])_(\d+)nodes?", path.stem).groups()
    assert re.search(r"^# Nodes: (\d+) ", text, re.MULTILINE)[1] == nodes
    base = path.parent / changes.pop("recipe")
    assert base.name == f"{model}_{STAGES[int(stage) - 1][0]}.yaml" and changes.pop("balance_tiles") is True
    experts = changes.pop("expert_parallel_degree")
    assert changes.keys() == {"gradient_accumulation_steps"}
    arguments = load_recipe(base, [f"{key}={value}" for key, value in changes.items()])
    plan = plan_cluster(arguments, Cluster(int(nodes)), Division(experts))
    assert plan.rows == PAPER[model][int(stage) - 1][2]
    stated = re.search(r"^# Memory: (\d+) GB", text, re.MULTILINE)
    needed = sum(plan.memory.values()) / 1e9
    assert int(stated[1]) == round(needed) if stated else needed < 80


def _missing(written, read, place=""):
    """Keys of the file whose value did not survive."""
    if not isinstance(written, dict):
        return [] if written == read else [place]
    return [at for key in written for at in _missing(written[key], read.get(key), f"{place}.{key}")]


def test_the_demo_config_has_the_keys_of_a_published_one():
    small, demo = (
        json.loads((ROOT / f"configs/model/{name}.json").read_text()) for name in ("small", "demo")
    )
    assert small.keys() == demo.keys()
    # The published models begin with trained weights, the demo with random ones of this size.
    del demo["language_config"]["initializer_range"]
    for part in ("vision_config", "projector_config", "language_config"):
        assert small[part].keys() == demo[part].keys()


def test_the_version_is_the_same_in_setup_and_package():
    assert f'version="{paddlemix_vl2.__version__}"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def make(*arguments):
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("demo", ["venv", ".[cpu]", "examples/single_image_infer.py"]),
        ("test", [".[cpu,test]", "ruff check", "ruff format --check", "tokenizers/100k", "-m pytest"]),
    ],
)
def test_the_two_commands_of_the_readme_are_targets(target, commands):
    assert f"make {target}" in (ROOT / "README.md").read_text(encoding="utf-8")
    result = make(target)
    assert result.returncode == 0, result.stderr
    assert [command for command in commands if command not in result.stdout] == []
