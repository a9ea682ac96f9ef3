"""Rules of the repository that no single module can show: imports point one way, everything loads, files stay
small."""

import ast
import doctest
import importlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import paddlemix_vl2
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.planning.cluster import PAPER_RUNS, Cluster, plan_cluster
from paddlemix_vl2.planning.dry_run import describe
from paddlemix_vl2.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "paddlemix_vl2"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Imports point upwards only: a part may import what stands in a line above its own.
LAYERS = (
    {"files", "hub", "device", "process_tuning", "layouts", "deprecation"},
    {"config", "generation", "kernels"},
    {"checkpoints", "processing"},
    {"models", "demo"},
    {"data", "serving", "figures", "distributed"},
    {"web", "evaluation", "server", "training"},
    {"planning", "auto"},
    {"cli"},
    {"__init__"},
)
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}


def relative(path):
    return str(path.relative_to(ROOT))


def part_of(path):
    """The part of the package that a file belongs to: ``models`` for ``models/moe/layer.py``."""
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
    assert own in LAYER_OF, f"{own}: say in LAYERS where it stands"
    names = [name.split(".") for name in imported_names(path)]
    parts = {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "paddlemix_vl2"}
    above = {part for part in parts - {own} if LAYER_OF[part] >= LAYER_OF[own]}
    assert not above, f"{own} must not import {sorted(above)}"
    assert not {name[0] for name in names} & {"examples", "tools", "tests"}


def imported_files(path):
    """The package's own files that a file imports."""
    for name in imported_names(path):
        parts = name.split(".")
        for end in (len(parts), len(parts) - 1):  # a module, or a name in one
            base = ROOT.joinpath(*parts[:end])
            found = [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
            if found and parts[0] == "paddlemix_vl2":
                yield found[0]
                break


def test_no_file_imports_itself_by_way_of_others():
    imports = {path: set(imported_files(path)) - {path} for path in SOURCES}
    finished: set[Path] = set()

    def visit(path, way):
        assert path not in way, " -> ".join(relative(step) for step in [*way[way.index(path) :], path])
        if path not in finished:
            for target in imports[path]:
                visit(target, [*way, path])
            finished.add(path)

    for path in SOURCES:
        visit(path, [])


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


def python_files():
    folders = ("paddlemix_vl2", "examples", "tools", "tests")
    return sorted(path for part in folders for path in (ROOT / part).rglob("*.py"))


def test_files_stay_small():
    files = python_files()
    assert len(files) > 40, "the search found too little"
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    of_package = [length for name, length in lengths.items() if name.startswith("paddlemix_vl2/")]
    assert statistics.median(of_package) <= 150


def test_functions_stay_small():
    """With their docstrings, which describe more than the code does."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    lengths = {
        f"{relative(path)}:{node.name}": node.end_lineno - node.lineno + 1 - docstring_lines(node)
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def docstring_lines(node):
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(getattr(first, "value", None), ast.Constant)
    return first.end_lineno - first.lineno + 1 if is_docstring else 0


# Attributes that Paddle and Python mean to be set on the objects of others.
SET_BY_CONVENTION = {"stop_gradient", "grad", "name", "showwarning"}
# Objects that are filled by whoever holds them: the own one, a PyLayer's context, a command's flags.
OPEN_OBJECTS = {"self", "cls", "ctx", "arguments"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_object_gets_attributes_from_outside(path):
    """What an object has, its constructor and its own methods say; a value that a function has just made may
    be filled where it is made."""
    found = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in attributes_set(function)
        if node.attr not in SET_BY_CONVENTION and not made_here(function, node.value)
    ]
    assert found == []


def attributes_set(function):
    """Attributes that a function assigns, except its own object's."""
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            continue
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    owner = part.value
                    if not (isinstance(owner, ast.Name) and owner.id in OPEN_OBJECTS):
                        yield part


def made_here(function, owner):
    """Whether the object is the result of a call in the same function."""
    if not isinstance(owner, ast.Name):
        return False
    made = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made |= {
                name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            made.add(node.optional_vars.id)
    return owner.id in made


# Words of earlier releases that the field does not use, and what it says; CONTRIBUTING.md has the glossary.
OLD_NAMES = (
    *("Visibility", "HIDDEN_SCORE", "step_bias", "run_biases", "heads_first", "way_back", "AttendStep"),
    *("TokenDropping", "MOST_[A-Z]+", "LONGEST_[A-Z]+", "LEAST_[A-Z]+", "FEWEST_[A-Z]+", "SMALLEST_[A-Z]+"),
    *("roomy_capacity", "RunningBatch", "AnswerService", "newcomer", "Outline", "OutlinedParameter"),
    *("Placement", "Division", "sum_over_blocks", "sum_over_copies", "Writers", "ALONE", "leave_out"),
    *("ExchangingDispatcher", "ReplicatedDispatcher", "RouterLoads", "batch_total", "too_long", "TooLong"),
    *("supervise", "num_supervised", "balance_devices", "mixture layers?", "from nothing"),
)
WITH_OLD_NAMES = {
    "paddlemix_vl2/deprecation.py",
    "tests/test_deprecation.py",
    "tests/test_project.py",
    "tests/cli/test_program.py",
    "tests/cli/test_train.py",
    "CHANGELOG.md",
}


def test_old_names_are_in_the_deprecation_table_only():
    pattern = re.compile(rf"\b_?(?:{'|'.join(OLD_NAMES)})\b")
    texts = [*python_files(), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *RECIPES]
    found = {}
    for path in texts:
        if relative(path) not in WITH_OLD_NAMES:
            names = sorted(set(pattern.findall(path.read_text(encoding="utf-8"))))
            found |= {relative(path): names} if names else {}
    assert found == {}


MODEL_CONFIGS = sorted((ROOT / "configs" / "model").rglob("*.json"))
RECIPES = sorted((ROOT / "configs" / "train").rglob("*.yaml"))
CLUSTER_RECIPES = [path for path in RECIPES if path.parent.name == "clusters"]
NUM_RECIPES = 11 + 3 * 4  # of the demo; three stages and one with adapters for each published model
NUM_CLUSTER_RECIPES = 9 + 2  # stages 2 and 3 of VL2-Small and, where there are enough nodes, of VL2


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
    assert arguments.train_on == ("completions" if stage == 3 else "all")
    assert arguments.aux_loss_alpha == (1e-4 if model == "base" else 1e-3)
    assert arguments.bias_update_speed == (0.001 if (model, stage) == ("base", 2) else 0)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.95, 0.1)
    assert (arguments.max_grad_norm, arguments.max_seq_length, arguments.bf16_wanted) == (1.0, 4096, True)


@pytest.mark.parametrize("path", CLUSTER_RECIPES, ids=relative)
def test_recipes_for_clusters_change_no_more_than_the_degrees(path):
    """The batch is the paper's on that many nodes, and it fits into an A100."""
    text = path.read_text(encoding="utf-8")
    changes = yaml.safe_load(text)
    model, stage, nodes = re.fullmatch(r"(small|base)_stage([23])_(\d+)nodes?", path.stem).groups()
    assert re.search(r"^# Nodes: (\d+) ", text, re.MULTILINE)[1] == nodes
    base = path.parent / changes.pop("recipe")
    assert base.name == f"{model}_{STAGES[int(stage) - 1][0]}.yaml" and changes.pop("balance_tiles") is True
    experts = changes.pop("expert_parallel_degree")
    assert changes.keys() == {"gradient_accumulation_steps"}
    arguments = load_recipe(base, [f"{key}={value}" for key, value in changes.items()])
    plan = plan_cluster(arguments, Cluster(int(nodes)), experts)
    assert plan.rows == PAPER[model][int(stage) - 1][2]
    assert sum(plan.memory.values()) < 80e9


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
