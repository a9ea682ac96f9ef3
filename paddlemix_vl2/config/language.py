"""``language_config``: the language model, multi-head or latent attention, dense or MoE layers."""

from paddlemix_vl2.config.base import PublishedConfig, RepeatedLayers
from paddlemix_vl2.config.checks import check_choice, check_positive

# The registry of routers adds the names of others (models/moe/registry.py).
TOPK_METHODS = ["greedy", "group_limited_greedy", "noaux_tc"]

SCORING_FUNCS = ("softmax", "sigmoid")

ROPE_TYPES = ("linear", "dynamic", "yarn")


class DeepseekV2Config(PublishedConfig):
    """``language_config``: the mixture-of-experts language model (DeepSeek-V2, arXiv 2405.04434)."""

    model_type = "deepseek_v2"

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    moe_intermediate_size: int = 1407
    num_hidden_layers: int = 30
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    n_shared_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 0
    scoring_func: str = "softmax"
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    use_mla: bool = True
    kv_lora_rank: int | None = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    bos_token_id: int = 100000
    eos_token_id: int = 100001
    tie_word_embeddings: bool = False

    def check(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        check_positive("language_config", self, *sizes, "moe_layer_freq", "max_position_embeddings")
        check_positive("language_config", self, "rope_theta", "rms_norm_eps")
        if self.tie_word_embeddings:
            raise ValueError("language_config: tie_word_embeddings is used by no published model")
        if self.n_routed_experts is not None:
            self._check_experts()
        self._check_rope_scaling()
        if self.use_mla:
            latent = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            check_positive("language_config", self, *latent)
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
        check_choice("language_config.rope_scaling.type", rope_type, ROPE_TYPES)
        factor = scaling.get("factor")
        if not isinstance(factor, int | float) or factor < 1:
            raise ValueError(f"language_config: rope_scaling.factor is {factor!r}; it must be 1 or more")

    def _check_experts(self) -> None:
        check_choice("language_config.topk_method", self.topk_method, TOPK_METHODS)
        check_choice("language_config.scoring_func", self.scoring_func, SCORING_FUNCS)
        check_positive("language_config", self, "n_routed_experts", "moe_intermediate_size")
        experts, chosen = self.num_routed_experts, self.num_experts_per_tok
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

    def repeated_layers(self) -> list[RepeatedLayers]:
        kinds = tuple(self.is_moe_layer(index) for index in range(self.num_hidden_layers))
        return [RepeatedLayers("model.layers", kinds, "", "num_hidden_layers")]

    @property
    def num_routed_experts(self) -> int:
        """``n_routed_experts``; 0 where all layers are dense."""
        return self.n_routed_experts or 0

    @property
    def num_chosen_experts(self) -> int:
        """``num_experts_per_tok``; 0 where all layers are dense."""
        return self.num_experts_per_tok or 0

    @property
    def latent_rank(self) -> int:
        """``kv_lora_rank``; 0 without latent attention."""
        return self.kv_lora_rank or 0

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated by their position."""
        return self.qk_rope_head_dim if self.use_mla else self.hidden_size // self.num_attention_heads

    @property
    def max_sequence_length(self) -> int:
        """Positions that the rotary tables may reach: ``max_position_embeddings``, times the factor of
        linear and dynamic scaling (YaRN configs state the extended length in ``max_position_embeddings``
        already)."""
        scaling = self.rope_scaling or {}
        if scaling.get("type", scaling.get("rope_type")) in ("linear", "dynamic"):
            return int(self.max_position_embeddings * scaling["factor"])
        return self.max_position_embeddings
