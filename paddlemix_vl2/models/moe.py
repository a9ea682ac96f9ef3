"""Mixture of experts: routing, and the sorted path through the experts.

Source: published ``MoEGate`` and ``DeepseekV2MoE``; DeepSeekMoE (arXiv 2401.06066),
DeepSeek-V2 (arXiv 2405.04434, section 2.2), loss-free balancing (arXiv 2408.15664).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.dropping import TokenDropping
from paddlemix_vl2.models.layers import DeepseekV2MLP
from paddlemix_vl2.models.precision import keeps_float32

# Pairs of token and expert up to which a stack is used: each reads the weights of its expert.
MOST_GATHERED = 64


@dataclass(frozen=True)
class Routing:
    """What the gate decided for M tokens; data that is passed on and stored nowhere.

    Attributes:
        experts: int64 [M, K], the chosen experts of each token.
        weights: float32 [M, K], their weights, with gradient.
        scores: float32 [M, E], the gate's score of every expert, with gradient: what balance losses level.
        kept: bool [M, K], False for the pairs that :class:`~.dropping.TokenDropping` leaves out; None where
            nothing is dropped.
    """

    experts: paddle.Tensor
    weights: paddle.Tensor
    scores: paddle.Tensor
    kept: paddle.Tensor | None = None

    @property
    def load(self) -> paddle.Tensor:
        """Tokens that each expert computes, int64 [E], counted when asked for. Not with ``bincount``, which
        makes the host wait for a GPU."""
        chosen = F.one_hot(self.experts, self.scores.shape[-1])
        if self.kept is not None:
            chosen = chosen * self.kept.unsqueeze(-1).astype(chosen.dtype)
        return chosen.sum(axis=[0, 1]).astype("int64")

    @property
    def order(self) -> paddle.Tensor:
        """The pairs sorted by expert, what is dropped behind all of them, int64 [M * K]."""
        if self.kept is None:
            return self.experts.flatten().argsort(stable=True)
        behind = paddle.full_like(self.experts, self.scores.shape[-1])
        return paddle.where(self.kept, self.experts, behind).flatten().argsort(stable=True)


class MoEGate(nn.Layer):
    """Chooses ``num_experts_per_tok`` of ``n_routed_experts`` for every token, in float32.

    ``greedy`` takes the best scores, ``group_limited_greedy`` the best within the best groups (a group
    counts its best expert), ``noaux_tc`` the best of score plus ``e_score_correction_bias`` (a group counts
    its two best) while the weight remains the score without bias. All three can be trained; the bias has no
    gradient, a balancer moves it.
    """

    def __init__(self, config: DeepseekV2Config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.n_routed_experts
        self.scoring_func = config.scoring_func
        self.topk_method = config.topk_method
        self.num_groups = config.n_group or 1
        self.kept_groups = config.topk_group or 1
        self.normalize = config.norm_topk_prob and self.top_k > 1
        self.scaling_factor = config.routed_scaling_factor
        self.weight = self.create_parameter([self.num_experts, config.hidden_size])  # [E, H], as published
        if self.topk_method == "noaux_tc":
            self.e_score_correction_bias = self.create_parameter(
                [self.num_experts], dtype="float32", default_initializer=nn.initializer.Constant(0.0)
            )
            self.e_score_correction_bias.stop_gradient = True

    @keeps_float32
    def forward(self, hidden: paddle.Tensor) -> Routing:
        """Route the tokens of [B, T, H]."""
        tokens = hidden.flatten(stop_axis=1).astype("float32")
        logits = paddle.matmul(tokens, self.weight.astype("float32"), transpose_y=True)
        scores = F.softmax(logits, axis=-1) if self.scoring_func == "softmax" else F.sigmoid(logits)  # [M, E]
        experts = self._choose(scores.detach())
        weights = paddle.take_along_axis(scores, experts, axis=1)
        if self.normalize:
            weights = weights / (weights.sum(axis=-1, keepdim=True) + 1e-20)
        return Routing(experts, weights * self.scaling_factor, scores)

    def _apply(self, func, device, dtype, blocking, include_sublayers=True):
        """What ``Layer.to`` does to this layer, except that the correction bias keeps its float32: its steps
        of 0.001 are lost in 16 bits, and other experts would be chosen."""
        bias = getattr(self, "e_score_correction_bias", None)

        def move(tensor, device, dtype, blocking):
            return func(tensor, device, None if tensor is bias else dtype, blocking)

        super()._apply(move, device, dtype, blocking, include_sublayers)

    def _choose(self, scores: paddle.Tensor) -> paddle.Tensor:
        """float32 [M, E] -> int64 [M, K]."""
        if self.topk_method == "noaux_tc":
            scores = scores + self.e_score_correction_bias.astype("float32")
        if self.topk_method != "greedy" and self.num_groups > 1:
            best_of_group = 2 if self.topk_method == "noaux_tc" else 1
            scores = self._mask_groups(scores, best_of_group)
        return paddle.topk(scores, self.top_k, axis=-1)[1]

    def _mask_groups(self, scores: paddle.Tensor, best_of_group: int) -> paddle.Tensor:
        """-inf for experts outside the best groups. Not 0, which would outrank a kept expert of negative
        score."""
        grouped = scores.reshape([scores.shape[0], self.num_groups, -1])
        group_scores = paddle.topk(grouped, best_of_group, axis=-1)[0].sum(axis=-1)
        kept = paddle.topk(group_scores, self.kept_groups, axis=-1)[1]
        mask = F.one_hot(kept, self.num_groups).sum(axis=1).unsqueeze(-1)  # [M, groups, 1]
        return paddle.where(mask > 0, grouped, paddle.full_like(grouped, -float("inf"))).flatten(start_axis=1)


@dataclass(frozen=True)
class Dispatched:
    """Rows that an :class:`ExpertDispatcher` has brought to the experts of this process.

    Attributes:
        rows: [rows, H], sorted by expert.
        counts: how many of them are for each of the dispatcher's ``experts``.
        way_back: what ``combine`` needs to know.
    """

    rows: paddle.Tensor
    counts: list[int]
    way_back: Any


class ExpertDispatcher(Protocol):
    """Where the experts are spread over processes: brings rows to their experts and the outputs back.

    Attributes:
        experts: global indices of the experts of this process.
    """

    experts: range

    def dispatch(self, rows: paddle.Tensor, load: paddle.Tensor) -> Dispatched:
        """Rows [P, H] sorted by expert, ``load`` int64 [E] of them for each."""

    def combine(self, outputs: paddle.Tensor, dispatched: Dispatched) -> paddle.Tensor:
        """What the experts made of ``dispatched.rows``; [P, H] in the order of the rows given."""


class Experts(nn.Layer):
    """The routed experts that this process holds, under their global indices: ``experts.{e}``."""

    def __init__(self, config: DeepseekV2Config, local: range):
        super().__init__()
        for index in range(config.n_routed_experts):
            # The others are made and dropped one by one: random values do not depend on who holds which.
            expert = DeepseekV2MLP(config.hidden_size, config.moe_intermediate_size)
            if index in local:
                self.add_sublayer(str(index), expert)

    def __getitem__(self, index: int) -> DeepseekV2MLP:
        return self._sub_layers[str(index)]

    def __iter__(self):
        return iter(self._sub_layers.values())

    def __len__(self) -> int:
        return len(self._sub_layers)


class DeepseekV2MoE(nn.Layer):
    """Routed experts, weighted and added to the shared experts; one path for training and inference.

    The (token, choice) pairs are sorted by expert, every expert with tokens runs once on one contiguous
    slice, and the outputs go back to their tokens. The counts are read from the device once per layer.
    Shared experts are one MLP of ``n_shared_experts`` times the width.

    After :func:`stack_experts`, few tokens take the weights of their experts by index instead, and the host
    does not have to know the counts.

    Args:
        config: the language model's.
        dispatcher: where other processes hold the experts that this one does not.
    """

    def __init__(self, config: DeepseekV2Config, dispatcher: ExpertDispatcher | None = None):
        super().__init__()
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.gate = MoEGate(config)
        self.dispatcher = dispatcher
        self.experts = Experts(config, dispatcher.experts if dispatcher else range(config.n_routed_experts))
        self.stacked: list[paddle.Tensor] | None = None
        self.dropping: TokenDropping | None = None  # of the micro-batch, where training drops tokens
        self.shared_experts = None
        if config.n_shared_experts:
            self.shared_experts = DeepseekV2MLP(hidden, width * config.n_shared_experts)

    def forward(self, hidden: paddle.Tensor) -> tuple[paddle.Tensor, Routing]:
        """[B, T, H] -> [B, T, H] and the routing."""
        routing = self.gate(hidden)
        if self.dropping is not None and self.training:
            routing = self.dropping.apply(routing)
        run = self._gather_experts if self._takes_stacked(routing) else self._run_experts
        output = run(hidden.flatten(stop_axis=1), routing).reshape(hidden.shape)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden)
        return output, routing

    def _run_experts(self, tokens: paddle.Tensor, routing: Routing) -> paddle.Tensor:
        """[M, H] -> [M, H], the weighted sum of each token's experts."""
        num_tokens, top_k = routing.experts.shape
        order = routing.order  # pairs sorted by expert, [M * K]
        kept = order if routing.kept is None else order[: int(routing.kept.sum())]
        sorted_tokens = paddle.gather(tokens, kept // top_k)
        if self.dispatcher is None:
            sorted_outputs = self._run_slices(sorted_tokens, enumerate(routing.load.tolist()))
        else:
            dispatched = self.dispatcher.dispatch(sorted_tokens, routing.load)
            loads = zip(self.dispatcher.experts, dispatched.counts, strict=True)
            sorted_outputs = self.dispatcher.combine(self._run_slices(dispatched.rows, loads), dispatched)
        if kept.size < order.size:  # a pair that is dropped adds nothing
            nothing = paddle.zeros([order.size - kept.size, tokens.shape[-1]], sorted_outputs.dtype)
            sorted_outputs = paddle.concat([sorted_outputs, nothing])
        pairs = paddle.gather(sorted_outputs, order.argsort()).reshape([num_tokens, top_k, -1])
        return _weighted_sum(routing.weights, pairs).astype(tokens.dtype)

    def _run_slices(self, rows: paddle.Tensor, loads: Iterable[tuple[int, int]]) -> paddle.Tensor:
        """[rows, H] -> [rows, H], the rows sorted by expert, ``loads`` the number of each expert's."""
        loads = [(expert, count) for expert, count in loads if count]
        if not loads:
            return rows
        # One split: the gradient of a slice is as large as the whole, one per expert.
        slices = paddle.split(rows, [count for _, count in loads])
        outputs = [self.experts[expert](part) for (expert, _), part in zip(loads, slices, strict=True)]
        return paddle.concat(outputs) if len(outputs) > 1 else outputs[0]

    def _takes_stacked(self, routing: Routing) -> bool:
        """Whether there is a stack, for few pairs, that still is what the experts compute with: they may have
        been cast since, or have got adapters. Gradients go to the experts' own parameters."""
        if self.stacked is None or routing.experts.size > MOST_GATHERED or paddle.is_grad_enabled():
            return False
        first = self.experts[0]
        return all(
            type(part) is nn.Linear and part.weight.data_ptr() == stack.data_ptr()
            for part, stack in zip(
                (first.gate_proj, first.up_proj, first.down_proj), self.stacked, strict=True
            )
        )

    def _gather_experts(self, tokens: paddle.Tensor, routing: Routing) -> paddle.Tensor:
        """What :meth:`_run_experts` computes, pair by pair with weights of its own."""
        num_tokens, top_k = routing.experts.shape
        index = routing.experts.flatten()
        gate, up, down = (paddle.gather(weights, index) for weights in self.stacked)
        rows = tokens.unsqueeze(1).expand([-1, top_k, -1]).reshape([num_tokens * top_k, 1, -1])
        inner = F.silu(paddle.bmm(rows, gate)) * paddle.bmm(rows, up)
        pairs = paddle.bmm(inner, down).reshape([num_tokens, top_k, -1])
        return _weighted_sum(routing.weights, pairs).astype(tokens.dtype)


@paddle.no_grad()
def stack_experts(model: nn.Layer) -> None:
    """Lay the experts' weights of every mixture side by side, without a copy that stays: the experts' own
    parameters become views of the stack. For inference on a GPU."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, DeepseekV2MoE) and layer.dispatcher is None:
            layer.stacked = []
            for part in ("gate_proj", "up_proj", "down_proj"):
                weights = [getattr(expert, part).weight for expert in layer.experts]
                stack = paddle.stack(weights)
                for index, weight in enumerate(weights):
                    stack[index]._share_buffer_to(weight)
                layer.stacked.append(stack)


@keeps_float32
def _weighted_sum(weights: paddle.Tensor, pairs: paddle.Tensor) -> paddle.Tensor:
    """[M, K] and [M, K, H] -> float32 [M, H]."""
    return paddle.matmul(weights.unsqueeze(1), pairs.astype("float32")).squeeze(1)
