"""The routers of DeepSeek's models.

Source: published ``MoEGate``; DeepSeekMoE (arXiv 2401.06066), DeepSeek-V2 (arXiv 2405.04434, section 2.2),
loss-free balancing (arXiv 2408.15664).
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.losses import BalanceLosses, Segments
from paddlemix_vl2.models.moe.registry import register_router
from paddlemix_vl2.models.moe.routing import Routing


@register_router("greedy", "group_limited_greedy", "noaux_tc")
class MoEGate(nn.Layer):
    """Chooses ``num_experts_per_tok`` of ``n_routed_experts`` for every token, in float32.

    ``greedy`` takes the best scores, ``group_limited_greedy`` the best within the best groups (a group
    counts its best expert), ``noaux_tc`` the best of score plus ``e_score_correction_bias`` (a group counts
    its two best) while the weight remains the score without bias. All three can be trained; the bias has no
    gradient, a balancer moves it.
    """

    def __init__(self, config: DeepseekV2Config):
        super().__init__()
        self.config = config
        self.top_k = config.num_chosen_experts
        self.num_experts = config.num_routed_experts
        self.scoring_func = config.scoring_func
        self.topk_method = config.topk_method
        self.num_groups = config.n_group or 1
        self.topk_group = config.topk_group or 1
        self.normalize = config.norm_topk_prob and self.top_k > 1
        self.scaling_factor = config.routed_scaling_factor
        self.weight = self.create_parameter([self.num_experts, config.hidden_size])  # [E, H], as published
        if self.topk_method == "noaux_tc":
            self.e_score_correction_bias = self.create_parameter(
                [self.num_experts], dtype="float32", default_initializer=nn.initializer.Constant(0.0)
            )
            self.e_score_correction_bias.stop_gradient = True

    def forward(
        self, hidden_states: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor | None]:
        """Route the tokens of [B, T, H].

        Returns:
            topk_idx int64 [M, K]; topk_weight float32 [M, K]; aux_loss, the config's balance loss of these
            tokens, every row a sequence: None in evaluation, or where its weight is 0.
        """
        routing = self.route(hidden_states)
        aux_loss = None
        if self.training:
            losses = BalanceLosses.of_config(self.config)
            aux_loss = losses.total([routing], Segments.of_rows(*hidden_states.shape[:2]))
        return routing.topk_idx, routing.topk_weight, aux_loss

    def route(self, hidden_states: paddle.Tensor, context: RoutingContext | None = None) -> Routing:
        """Route the tokens of [B, T, H]; what the layers of a model call."""
        if paddle.amp.is_autocast_enabled():  # which would compute in 16 bits
            with paddle.amp.auto_cast(enable=False):
                return self.route(hidden_states, context)
        tokens = hidden_states.flatten(stop_axis=1).astype("float32")
        logits = paddle.matmul(tokens, self.weight.astype("float32"), transpose_y=True)
        scores = F.softmax(logits, axis=-1) if self.scoring_func == "softmax" else F.sigmoid(logits)  # [M, E]
        topk_idx = self._choose(scores.detach())
        topk_weight = paddle.take_along_axis(scores, topk_idx, axis=1)
        if self.normalize:
            topk_weight = topk_weight / (topk_weight.sum(axis=-1, keepdim=True) + 1e-20)
        return Routing(topk_idx, topk_weight * self.scaling_factor, scores)

    def _apply(self, func, device, dtype, blocking, include_sublayers=True):
        """What ``Layer.to`` does to this layer, except that the correction bias keeps its float32: its steps
        of 0.001 are lost in 16 bits, and other experts would be chosen."""
        bias = getattr(self, "e_score_correction_bias", None)

        def move(tensor, device, dtype, blocking):
            return func(tensor, device, None if tensor is bias else dtype, blocking)

        super()._apply(move, device, dtype, blocking, include_sublayers)

    @paddle.no_grad()
    def move_bias(self, tokens_per_expert: paddle.Tensor, speed: float) -> None:
        """Move the correction bias a step of ``speed`` towards even loads, float32 [E] (arXiv 2408.15664)."""
        self.e_score_correction_bias.add_(speed * paddle.sign(tokens_per_expert.mean() - tokens_per_expert))

    def _choose(self, scores: paddle.Tensor) -> paddle.Tensor:
        """float32 [M, E] -> int64 [M, K]."""
        if self.topk_method == "noaux_tc":
            scores = scores + self.e_score_correction_bias.astype("float32")
        if self.topk_method != "greedy" and self.num_groups > 1:
            best_of_group = 2 if self.topk_method == "noaux_tc" else 1
            scores = self._mask_groups(scores, best_of_group)
        return paddle.topk(scores, self.top_k, axis=-1)[1]

    def _mask_groups(self, scores: paddle.Tensor, best_of_group: int) -> paddle.Tensor:
        """-inf for experts outside the best groups. Not 0, which would outrank an allowed expert of negative
        score."""
        grouped = scores.reshape([scores.shape[0], self.num_groups, -1])
        group_scores = paddle.topk(grouped, best_of_group, axis=-1)[0].sum(axis=-1)
        allowed = paddle.topk(group_scores, self.topk_group, axis=-1)[1]
        mask = F.one_hot(allowed, self.num_groups).sum(axis=1).unsqueeze(-1)  # [M, groups, 1]
        return paddle.where(mask > 0, grouped, paddle.full_like(grouped, -float("inf"))).flatten(start_axis=1)
