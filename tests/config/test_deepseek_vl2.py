"""Published config.json files are read, checked and written back as they are."""

import copy
import json
import pickle
from pathlib import Path

import pytest

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.config.vision import MlpProjectorConfig, VisionEncoderConfig

TESTS = Path(__file__).parents[1]
PUBLISHED = sorted((TESTS.parent / "configs" / "model").glob("*.json"))
GOLDEN = sorted(TESTS.glob("golden/*/config.json"))
EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 3}


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def lost_or_changed(before: dict, after: dict, path: str = "") -> list[str]:
    """Paths of keys that are not in ``after`` with the same value; more keys there are no matter."""
    found = []
    for key, value in before.items():
        if isinstance(value, dict) and isinstance(after.get(key), dict):
            found += lost_or_changed(value, after[key], f"{path}{key}.")
        elif key not in after or after[key] != value:
            found.append(path + key)
    return found


def language(**settings) -> DeepseekV2Config:
    return DeepseekV2Config(**{**EXPERTS, **settings})


def test_there_are_configs_to_test():
    assert {"tiny", "small", "base"} <= {file.stem for file in PUBLISHED}
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("file", [*PUBLISHED, *GOLDEN], ids=lambda file: f"{file.parent.name}-{file.stem}")
class TestRoundTrip:
    def test_nothing_is_lost(self, file):
        values = DeepseekVLV2Config.from_json(file).to_dict()
        assert lost_or_changed(read(file), values) == []
        assert DeepseekVLV2Config(**values).to_dict() == values

    def test_through_a_file(self, file, tmp_path):
        config = DeepseekVLV2Config.from_json(file)
        config.save_pretrained(tmp_path)
        written = read(tmp_path / "config.json")
        assert written == config.to_dict()
        assert DeepseekVLV2Config.from_json(tmp_path).to_dict() == written
        assert DeepseekVLV2Config.from_pretrained(str(tmp_path)).to_dict() == written

    def test_copies(self, file):
        config = DeepseekVLV2Config.from_json(file)
        for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
            assert other.to_dict() == config.to_dict()

    def test_parts_are_typed(self, file):
        config = DeepseekVLV2Config.from_json(file)
        assert isinstance(config.vision_config, VisionEncoderConfig)
        assert isinstance(config.projector_config, MlpProjectorConfig)
        assert isinstance(config.language_config, DeepseekV2Config)
        assert DeepseekVLV2Config(**{**vars_of(config)}).to_dict() == config.to_dict()


def vars_of(config: DeepseekVLV2Config) -> dict:
    """Constructor arguments with the parts as objects, not dictionaries."""
    return {key: getattr(config, key) for key in [*config.published_keys(), "dtype"]}


def test_keys_that_this_package_does_not_know_are_kept():
    """Published files carry some that only their own library reads."""
    values = read(PUBLISHED[0])
    values["auto_map"] = {"AutoConfig": "configuration.Config"}
    values["language_config"] |= {"lm_head": True, "rm_head": False, "auto_map": {"AutoModel": "model.Model"}}
    assert lost_or_changed(values, DeepseekVLV2Config(**values).to_dict()) == []


def test_published_defaults():
    """Keys that a published file leaves out take the published class's defaults."""
    config = language()
    assert (config.vocab_size, config.num_hidden_layers, config.num_attention_heads) == (102400, 30, 32)
    assert (config.kv_lora_rank, config.q_lora_rank) == (512, 1536)
    assert (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim) == (128, 64, 128)
    assert (config.bos_token_id, config.eos_token_id) == (100000, 100001)
    assert (config.aux_loss_alpha, config.seq_aux, config.norm_topk_prob) == (0.001, True, False)
    assert (config.rope_theta, config.rope_scaling, config.rms_norm_eps) == (10000.0, None, 1e-6)
    assert (config.scoring_func, config.use_mla, config.attention_bias) == ("softmax", True, False)
    vision = VisionEncoderConfig()
    assert (vision.layers, vision.width, vision.heads, vision.mlp_width) == (27, 1152, 16, 4304)
    assert vision.patches_per_side == 27
    projector = MlpProjectorConfig()
    assert (projector.depth, projector.downsample_ratio, projector.n_embed) == (2, 2, 2048)


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_tiles_become_196_tokens(file):
    assert DeepseekVLV2Config.from_json(file).image_tokens_per_side == (3 if file.stem == "demo" else 14)


def test_dtype_has_its_published_name():
    config = DeepseekVLV2Config.from_json(TESTS.parent / "configs" / "model" / "tiny.json")
    assert config.dtype == "bfloat16"
    assert config.to_dict()["torch_dtype"] == "bfloat16" and "dtype" not in config.to_dict()


@pytest.mark.parametrize(
    ("settings", "moe_layers"),
    [
        ({"first_k_dense_replace": 1}, [1, 2, 3, 4, 5]),
        ({"first_k_dense_replace": 3, "moe_layer_freq": 2}, [4]),
        ({"first_k_dense_replace": 0}, [0, 1, 2, 3, 4, 5]),
        ({"first_k_dense_replace": 9}, []),
        ({"n_routed_experts": None}, []),
    ],
)
def test_which_layers_hold_experts(settings, moe_layers):
    config = language(**settings)
    assert [layer for layer in range(6) if config.is_moe_layer(layer)] == moe_layers


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "dynamic", "factor": 4}, 16384),
        ({"type": "yarn", "factor": 40}, 4096),
    ],
)
def test_positions_of_the_rotary_tables(scaling, length):
    assert language(max_position_embeddings=4096, rope_scaling=scaling).max_sequence_length == length


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topk_method": "gready"}, "topk_method is 'gready'.*did you mean 'greedy'"),
        ({"scoring_func": "relu"}, r"scoring_func is 'relu'; it must be one of \['softmax', 'sigmoid'\]"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9; .* between 1 and n_routed_experts 8"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is None"),
        ({"topk_method": "noaux_tc", "n_group": 3}, "n_group 3 and topk_group 1 do not leave 3 of 8"),
        ({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 5}, "topk_group 5 do not leave"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling.type is 'ntk'"),
        (
            {"use_mla": False, "num_key_value_heads": 4},
            "num_key_value_heads 4 differs from num_attention_heads 32",
        ),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_bad_language_values(settings, message):
    with pytest.raises(ValueError, match=message):
        language(**settings)


def test_groups_matter_only_where_they_are_used():
    assert language(topk_method="greedy", n_group=3, topk_group=1).n_group == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile_tag": "1D"}, "tile_tag is '1D'"),
        ({"global_view_pos": "tail"}, "global_view_pos is 'tail'"),
        ({"vision_config": {"width": 10, "heads": 4}}, "width 10 is not a multiple of heads 4"),
        ({"vision_config": {"width": 64, "heads": 4}}, "input_dim 1152 is not vision_config.width 64"),
        ({"projector_config": {"n_embed": 64}}, "n_embed 64 is not language_config.hidden_size 2048"),
        ({"projector_config": {"projector_type": "linear"}}, "projector_type is 'linear'"),
        ({"projector_config": {"token_pooling": True}}, "token_pooling"),
    ],
)
def test_bad_values_of_the_whole(values, message):
    with pytest.raises(ValueError, match=message):
        DeepseekVLV2Config(**{"language_config": {"hidden_size": 2048}, **values})


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"config\.json: no such file; a checkpoint folder holds config\.json"
    ):
        DeepseekVLV2Config.from_json(tmp_path)
    (tmp_path / "config.json").write_text('{"tile_tag": ')
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        DeepseekVLV2Config.from_json(tmp_path)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (DeepseekV2Config, {"hiden_size": 64}, r"unknown key 'hiden_size'; did you mean 'hidden_size'\?"),
        (DeepseekV2Config, {"kv_lora_rank": None}, "kv_lora_rank is None; it must be a number above 0"),
        (DeepseekV2Config, {"moe_layer_freq": 0}, "moe_layer_freq is 0"),
        (DeepseekV2Config, {"qk_rope_head_dim": 7}, "7 rotated dimensions per head; they come in pairs"),
        (DeepseekV2Config, {"use_mla": False, "hidden_size": 50}, "hidden_size 50 is not a multiple of 32"),
        (DeepseekV2Config, {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be an object"),
        (DeepseekV2Config, {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
        (
            DeepseekV2Config,
            {**EXPERTS, "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4},
            "8 experts in 8 groups have fewer",
        ),
        (VisionEncoderConfig, {"layers": 0}, "layers is 0"),
        (VisionEncoderConfig, {"global_pool": "avg"}, "global_pool is 'avg'; only 'map' is supported"),
        (MlpProjectorConfig, {"depth": 1}, "depth is 1; downsample_mlp_gelu has at least 2 layers"),
    ],
)
def test_values_that_no_model_can_have(part, settings, message):
    with pytest.raises(ValueError, match=message):
        part(**settings)


def test_keys_of_other_tools_are_kept():
    config = DeepseekV2Config(auto_map={"AutoModel": "x"}, ep_size=1)
    assert config.unknown_keys == ["auto_map", "ep_size"]
    assert config.to_dict()["auto_map"] == {"AutoModel": "x"} and config.to_dict()["ep_size"] == 1


@pytest.mark.parametrize(
    ("content", "message"), [(b"[1]", "holds a JSON list; it must be an object"), (b"\xff", "not valid JSON")]
)
def test_files_that_hold_no_config(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        DeepseekVLV2Config.from_json(tmp_path)


def test_parts_that_are_no_objects():
    with pytest.raises(ValueError, match="vision_config: a list stands where an object"):
        DeepseekVLV2Config(vision_config=[1])


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        (
            "language_config",
            "hidden_size",
            "128",
            "language_config.hidden_size is '128'; it must be of",
        ),
        ("language_config", "use_mla", "no", "use_mla is 'no'; it must be of type bool"),
        ("language_config", "eos_token_id", None, "eos_token_id is None; it must be of type int"),
        ("language_config", "n_group", "a", "n_group is 'a'; it must be of type int or null"),
        ("language_config", "rope_theta", 0, "rope_theta is 0; it must be a number above 0"),
        ("projector_config", "depth", "2", "projector_config.depth is '2'"),
        (None, "candidate_resolutions", 5, "candidate_resolutions is 5; it must be of type list or null"),
    ],
)
def test_wrong_types_are_named_with_the_file(part, key, value, message, tmp_path):
    values = read(GOLDEN[0])
    (values[part] if part else values)[key] = value
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError) as error:
        DeepseekVLV2Config.from_json(file)
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
