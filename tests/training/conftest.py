"""A model of a few thousand parameters, with the drawn data set's tokenizer, and recipes for it."""

import json
from pathlib import Path

import pytest
import yaml

from paddlemix_vl2 import DeepseekVLV2Processor
from paddlemix_vl2.demo.tokenizer import build_tokenizer, collect_texts
from paddlemix_vl2.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]


def small_config() -> dict:
    """The demo's geometry, narrower, with the router that has a correction bias."""
    config = json.loads((ROOT / "configs" / "model" / "demo.json").read_text())
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
    """``config.json`` and the processor's files."""
    folder = tmp_path_factory.mktemp("small")
    config = small_config()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(collect_texts(200), config["language_config"]["vocab_size"])
    DeepseekVLV2Processor(tokenizer, config["candidate_resolutions"]).save_pretrained(folder)
    return folder


@pytest.fixture
def make_recipe_file(small_folder, tmp_path):
    """``make_recipe_file(name, key=value, ...)``: a recipe that trains the small model on drawn pictures."""

    def make(name: str = "recipe.yaml", **changes) -> Path:
        values = {
            "model_config": str(small_folder / "config.json"),
            "processor_path": str(small_folder),
            "output_dir": str(tmp_path / "run"),
            "vision": {"mode": "full"},
            "train_dataset": [{"format": "drawn", "task": "mixed"}, {"format": "drawn", "task": "words"}],
            "max_seq_length": 320,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 1000,
            "report_to": "none",
            "disable_tqdm": True,
            **changes,
        }
        file = tmp_path / name
        file.write_text(yaml.safe_dump(values))
        return file

    return make


@pytest.fixture
def make_recipe(make_recipe_file):
    """The same, read."""
    return lambda **changes: load_recipe(make_recipe_file(**changes))
