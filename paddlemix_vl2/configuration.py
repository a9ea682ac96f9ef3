"""Configuration of DeepSeek-VL2; every field is a key of the published ``config.json``.

The three parts (vision, projector, language) and the whole are PaddleNLP ``PretrainedConfig``s, so that
PaddleNLP's model, trainer and LoRA classes accept them. What is read is what is written: :meth:`to_dict`
holds the published keys only, plus keys of the file that this package does not know.

Source: ``config.json`` of deepseek-vl2-tiny, deepseek-vl2-small and deepseek-vl2, and the defaults of the
published configuration classes for keys that those files leave out.
"""

import difflib
import inspect
import json
import os
import typing
from pathlib import Path

from paddlenlp.transformers import PretrainedConfig

from paddlemix_vl2.image_layout import tokens_per_side

TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
SCORING_FUNCS = ("softmax", "sigmoid")
ROPE_TYPES = ("linear", "dynamic", "yarn")
PROJECTOR_TYPES = ("downsample_mlp_gelu",)
CONFIG_NAME = "config.json"
# Unknown keys are kept, as other tools add theirs; one this similar to a known key is a mistake.
_MISSPELT = 0.9
_PLAIN_TYPES = {int, float, bool, str, dict, list, type(None)}


def _check_choice(key: str, value, choices: tuple) -> None:
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{key} is {value!r}; it must be one of {list(choices)}{hint}")


def _check_positive(part: str, config: PretrainedConfig, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{part}: {key} is {value!r}; it must be a number above 0")


class _PublishedConfig(PretrainedConfig):
    """A config whose dictionary form is the published one: the keys of ``__init__`` and nothing of
    PaddleNLP's own."""

    def __init__(self, **kwargs):
        known = [*self.published_keys(), "model_type", "torch_dtype", "dtype", "architectures"]
        self.unknown_keys = [key for key in kwargs if key not in known]
        for key in self.unknown_keys:
            near = difflib.get_close_matches(key, known, n=1, cutoff=_MISSPELT)
            if near:
                raise ValueError(f"unknown key {key!r}; did you mean {near[0]!r}?")
        super().__init__(**kwargs)

    @classmethod
    def published_keys(cls) -> list[str]:
        """The keys of this part in the order of its constructor."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [
            p.name for p in parameters if p.name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD
        ]

    def to_dict(self, saving_file: bool = False) -> dict:
        """The published keys with their values; parts become dictionaries, ``dtype`` becomes
        ``torch_dtype``."""
        keys = ["model_type", *self.published_keys(), *self.unknown_keys]
        values = {key: getattr(self, key) for key in keys if hasattr(self, key)}
        plain = {key: v.to_dict() if isinstance(v, PretrainedConfig) else v for key, v in values.items()}
        return {**plain, "torch_dtype": self.dtype}

    def to_diff_dict(self, saving_file: bool = False) -> dict:
        """All published keys: a saved file does not depend on the defaults of any version."""
        return self.to_dict(saving_file)

    def to_json_string(self, use_diff: bool = True, saving_file: bool = False) -> str:
        return json.dumps(self.to_dict(saving_file), indent=2, ensure_ascii=False) + "\n"


class VisionEncoderConfig(_PublishedConfig):
    """``vision_config``: the SigLIP tower. ``mlp_ratio`` times ``width``, rounded down, is the MLP's
    width."""

    model_type = "vision"

    def __init__(
        self,
        model_name: str = "siglip_so400m_patch14_384",
        image_size: int = 384,
        patch_size: int = 14,
        width: int = 1152,
        layers: int = 27,
        heads: int = 16,
        mlp_ratio: float = 3.7362,
        global_pool: str = "map",
        ignore_head: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.model_name = model_name
        self.image_size = image_size
        self.patch_size = patch_size
        self.width = width
        self.layers = layers
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.global_pool = global_pool
        self.ignore_head = ignore_head
        _check_positive(
            "vision_config", self, "image_size", "patch_size", "width", "layers", "heads", "mlp_ratio"
        )
        if global_pool != "map":
            raise ValueError(f"vision_config: global_pool is {global_pool!r}; only 'map' is supported")
        if width % heads:
            raise ValueError(f"vision_config: width {width} is not a multiple of heads {heads}")

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size


class MlpProjectorConfig(_PublishedConfig):
    """``projector_config``: the 2x2 downsampling MLP between the vision tower and the language model."""

    model_type = "mlp_projector"

    def __init__(
        self,
        projector_type: str = "downsample_mlp_gelu",
        input_dim: int = 1152,
        n_embed: int = 2048,
        depth: int = 2,
        mlp_ratio: int = 1,
        downsample_ratio: int = 2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_choice("projector_config.projector_type", projector_type, PROJECTOR_TYPES)
        if kwargs.get("token_pooling"):
            raise ValueError(
                "projector_config: token_pooling is not used by any published model and not supported"
            )
        self.projector_type = projector_type
        self.input_dim = input_dim
        self.n_embed = n_embed
        self.depth = depth
        self.mlp_ratio = mlp_ratio
        self.downsample_ratio = downsample_ratio
        _check_positive("projector_config", self, "input_dim", "n_embed", "mlp_ratio", "downsample_ratio")
        if depth < 2:
            raise ValueError(f"projector_config: depth is {depth}; {projector_type} has at least 2 layers")


class DeepseekV2Config(_PublishedConfig):
    """``language_config``: the mixture-of-experts language model (DeepSeek-V2, arXiv 2405.04434)."""

    model_type = "deepseek_v2"

    def __init__(
        self,
        vocab_size: int = 102400,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        moe_intermediate_size: int = 1407,
        num_hidden_layers: int = 30,
        num_attention_heads: int = 32,
        num_key_value_heads: int = 32,
        n_shared_experts: int | None = None,
        n_routed_experts: int | None = None,
        num_experts_per_tok: int | None = None,
        moe_layer_freq: int = 1,
        first_k_dense_replace: int = 0,
        scoring_func: str = "softmax",
        topk_method: str = "greedy",
        n_group: int | None = None,
        topk_group: int | None = None,
        norm_topk_prob: bool = False,
        routed_scaling_factor: float = 1.0,
        aux_loss_alpha: float = 0.001,
        seq_aux: bool = True,
        use_mla: bool = True,
        kv_lora_rank: int | None = 512,
        q_lora_rank: int | None = 1536,
        qk_nope_head_dim: int = 128,
        qk_rope_head_dim: int = 64,
        v_head_dim: int = 128,
        attention_bias: bool = False,
        rope_theta: float = 10000.0,
        rope_scaling: dict | None = None,
        max_position_embeddings: int = 2048,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        bos_token_id: int = 100000,
        eos_token_id: int = 100001,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.moe_intermediate_size = moe_intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.n_shared_experts = n_shared_experts
        self.n_routed_experts = n_routed_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_layer_freq = moe_layer_freq
        self.first_k_dense_replace = first_k_dense_replace
        self.scoring_func = scoring_func
        self.topk_method = topk_method
        self.n_group = n_group
        self.topk_group = topk_group
        self.norm_topk_prob = norm_topk_prob
        self.routed_scaling_factor = routed_scaling_factor
        self.aux_loss_alpha = aux_loss_alpha
        self.seq_aux = seq_aux
        self.use_mla = use_mla
        self.kv_lora_rank = kv_lora_rank
        self.q_lora_rank = q_lora_rank
        self.qk_nope_head_dim = qk_nope_head_dim
        self.qk_rope_head_dim = qk_rope_head_dim
        self.v_head_dim = v_head_dim
        self.attention_bias = attention_bias
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self._check()

    def _check(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _check_positive("language_config", self, *sizes, "moe_layer_freq", "max_position_embeddings")
        _check_positive("language_config", self, "rope_theta", "rms_norm_eps")
        if self.tie_word_embeddings:
            raise ValueError("language_config: tie_word_embeddings is used by no published model")
        if self.n_routed_experts is not None:
            self._check_experts()
        self._check_rope_scaling()
        if self.use_mla:
            latent = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            _check_positive("language_config", self, *latent)
            rotated = self.qk_rope_head_dim
        else:
            rotated = self._check_heads()
            if (self.rope_scaling or {}).get("type") == "yarn":
                raise ValueError(
                    "language_config: rope_scaling yarn needs use_mla; no published model differs"
                )
        if rotated % 2:
            raise ValueError(f"language_config: {rotated} rotated dimensions per head; they come in pairs")

    def _check_heads(self) -> int:
        """The dimension of a head of multi-head attention."""
        heads, kv_heads, hidden = self.num_attention_heads, self.num_key_value_heads, self.hidden_size
        if kv_heads != heads:
            raise ValueError(
                f"language_config: num_key_value_heads {kv_heads} differs from num_attention_heads {heads}; "
                "grouped keys are used by no published model"
            )
        if hidden % heads:
            raise ValueError(f"language_config: hidden_size {hidden} is not a multiple of {heads} heads")
        return hidden // heads

    def _check_rope_scaling(self) -> None:
        scaling = self.rope_scaling
        if scaling is None:
            return
        if not isinstance(scaling, dict):
            raise ValueError(
                f"language_config: rope_scaling is {scaling!r}; it must be an object with a type"
            )
        rope_type = scaling.get("type", scaling.get("rope_type"))
        _check_choice("language_config.rope_scaling.type", rope_type, ROPE_TYPES)
        factor = scaling.get("factor")
        if not isinstance(factor, int | float) or factor < 1:
            raise ValueError(f"language_config: rope_scaling.factor is {factor!r}; it must be 1 or more")

    def _check_experts(self) -> None:
        _check_choice("language_config.topk_method", self.topk_method, TOPK_METHODS)
        _check_choice("language_config.scoring_func", self.scoring_func, SCORING_FUNCS)
        _check_positive("language_config", self, "n_routed_experts", "moe_intermediate_size")
        experts, chosen = self.n_routed_experts, self.num_experts_per_tok
        if not chosen or chosen > experts:
            raise ValueError(
                f"language_config: num_experts_per_tok is {chosen}; "
                f"it must be between 1 and n_routed_experts {experts}"
            )
        if self.topk_method == "greedy":
            return
        groups, kept = self.n_group or 1, self.topk_group or 1
        if self.topk_method == "noaux_tc" and groups > 1 and experts // groups < 2:
            raise ValueError(
                f"language_config: noaux_tc ranks groups by their two best experts; {experts} experts in "
                f"{groups} groups have fewer"
            )
        if experts % groups or kept > groups or kept * (experts // groups) < chosen:
            raise ValueError(
                f"language_config: n_group {groups} and topk_group {kept} "
                f"do not leave {chosen} of {experts} experts to choose from"
            )

    def is_moe_layer(self, layer_index: int) -> bool:
        """Whether decoder layer ``layer_index`` (from 0) holds experts; the first ``first_k_dense_replace``
        do not."""
        return (
            self.n_routed_experts is not None
            and layer_index >= self.first_k_dense_replace
            and layer_index % self.moe_layer_freq == 0
        )

    @property
    def max_sequence_length(self) -> int:
        """Positions that the rotary tables may reach: ``max_position_embeddings``, times the factor of
        linear and dynamic scaling (YaRN configs state the extended length in ``max_position_embeddings``
        already)."""
        scaling = self.rope_scaling or {}
        if scaling.get("type", scaling.get("rope_type")) in ("linear", "dynamic"):
            return int(self.max_position_embeddings * scaling["factor"])
        return self.max_position_embeddings


class DeepseekVLV2Config(_PublishedConfig):
    """The whole ``config.json``: the three parts, the tile layout and the tile sizes to choose from."""

    model_type = "deepseek_vl_v2"
    is_composition = True

    def __init__(
        self,
        tile_tag: str = "2D",
        global_view_pos: str = "head",
        candidate_resolutions: list | None = None,
        vision_config: dict | VisionEncoderConfig | None = None,
        projector_config: dict | MlpProjectorConfig | None = None,
        language_config: dict | DeepseekV2Config | None = None,
        **kwargs,
    ):
        kwargs.setdefault("architectures", ["DeepseekVLV2ForCausalLM"])
        super().__init__(**{**kwargs, "tie_word_embeddings": False})
        _check_choice("tile_tag", tile_tag, ("2D",))
        _check_choice("global_view_pos", global_view_pos, ("head",))
        self.tile_tag = tile_tag
        self.global_view_pos = global_view_pos
        self.candidate_resolutions = [list(pair) for pair in candidate_resolutions or [(384, 384)]]
        self.vision_config = _as_part("vision_config", vision_config, VisionEncoderConfig)
        self.projector_config = _as_part("projector_config", projector_config, MlpProjectorConfig)
        self.language_config = _as_part("language_config", language_config, DeepseekV2Config)
        self._check_widths()

    def _check_widths(self) -> None:
        vision, projector, language = self.vision_config, self.projector_config, self.language_config
        if projector.input_dim != vision.width:
            raise ValueError(
                f"projector_config.input_dim {projector.input_dim} is not vision_config.width {vision.width}"
            )
        if projector.n_embed != language.hidden_size:
            raise ValueError(
                f"projector_config.n_embed {projector.n_embed} is not "
                f"language_config.hidden_size {language.hidden_size}"
            )

    def to_dict(self, saving_file: bool = False) -> dict:
        return {"architectures": self.architectures, **super().to_dict(saving_file)}

    @property
    def image_tokens_per_side(self) -> int:
        """Rows (= columns) of image tokens that one tile becomes: 14 for the published models."""
        vision = self.vision_config
        return tokens_per_side(vision.image_size, vision.patch_size, self.projector_config.downsample_ratio)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "DeepseekVLV2Config":
        """Read a ``config.json``, or the one in a folder.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not JSON, or a value in it is not supported.
        """
        file = Path(path)
        file = file / CONFIG_NAME if file.is_dir() else file
        try:
            values = _as_object("the file", json.loads(file.read_text(encoding="utf-8")))
            _check_types("", cls, values)
            return cls(**values)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{file}: no such file; a checkpoint folder holds {CONFIG_NAME}"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not valid JSON ({error})") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


def _as_part(name: str, value, part_class):
    if isinstance(value, part_class):
        return value
    values = dict(_as_object(name, value or {}))
    values.pop("model_type", None)
    _check_types(f"{name}.", part_class, values)
    return part_class(**values)


def _check_types(prefix: str, part_class, values: dict) -> None:
    """Refuse values of another type than the constructor's annotation; whole numbers will do for floats."""
    for key, parameter in inspect.signature(part_class.__init__).parameters.items():
        allowed = typing.get_args(parameter.annotation) or (parameter.annotation,)
        if key not in values or not set(allowed) <= _PLAIN_TYPES:
            continue
        kind = type(values[key])
        if kind not in allowed and not (kind is int and float in allowed):
            names = " or ".join("null" if one is type(None) else one.__name__ for one in allowed)
            raise ValueError(f"{prefix}{key} is {values[key]!r}; it must be of type {names}")


def _as_object(name: str, value) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: a {type(value).__name__} stands where an object of keys and values must")
    return value
