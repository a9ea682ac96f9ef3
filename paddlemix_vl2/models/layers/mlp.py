"""Gated MLPs: one that every token goes through, and many that some do, the experts of an MoE layer.

Source: published ``DeepseekV2MLP``.
"""

from collections.abc import Iterator, Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.config.language import DeepseekV2Config

# Routed tokens up to which grouped weights are used: each reads the weights of its expert.
MAX_GATHERED_TOKENS = 64
_MATRICES = ("gate_proj", "up_proj", "down_proj")


class DeepseekV2MLP(nn.Layer):
    """Gated MLP, ``down(silu(gate(x)) * up(x))``: dense layers, shared experts and each routed expert."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias_attr=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias_attr=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias_attr=False)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H]."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class Experts(nn.Layer):
    """The routed experts that this process holds, under their global indices: ``experts.{e}``.

    Attributes:
        local: these indices.
        grouped: after :meth:`group_weights`, the three matrices of all experts, [E, in, out] each.
    """

    def __init__(self, config: DeepseekV2Config, local: range):
        super().__init__()
        self.local = local
        self.grouped: list[paddle.Tensor] = []
        for index in range(config.num_routed_experts):
            # The others are made and dropped one by one: random values do not depend on who holds which.
            expert = DeepseekV2MLP(config.hidden_size, config.moe_intermediate_size)
            if index in local:
                self.add_sublayer(str(index), expert)

    def forward(self, rows: paddle.Tensor, counts: Sequence[int]) -> paddle.Tensor:
        """Every expert with rows runs once, on one slice.

        Args:
            rows: [R, H], sorted by expert.
            counts: how many of them are for each of the experts of this process.

        Returns:
            [R, H].
        """
        used = [(expert, count) for expert, count in zip(self.local, counts, strict=True) if count]
        if not used:
            return rows
        # One split: the gradient of a slice is as large as the whole, one per expert.
        slices = paddle.split(rows, [count for _, count in used])
        outputs = [self[expert](part) for (expert, _), part in zip(used, slices, strict=True)]
        return paddle.concat(outputs) if len(outputs) > 1 else outputs[0]

    @paddle.no_grad()
    def group_weights(self) -> None:
        """Lay the experts' weights side by side, without a copy that stays: the experts' own parameters
        become views. For inference on a GPU, where the host need not know the counts then."""
        self.grouped = []
        for name in _MATRICES:
            weights = [getattr(expert, name).weight for expert in self]
            grouped = paddle.stack(weights)
            for index, weight in enumerate(weights):
                grouped[index]._share_buffer_to(weight)
            self.grouped.append(grouped)

    def takes_grouped(self, routed_tokens: int) -> bool:
        """Whether there are grouped weights, for so few routed tokens, that still are what the experts
        compute with: they may have been cast since, or have got adapters. Gradients go to the experts' own
        parameters."""
        if not self.grouped or routed_tokens > MAX_GATHERED_TOKENS or paddle.is_grad_enabled():
            return False
        first = [getattr(self[self.local.start], name) for name in _MATRICES]
        return all(
            type(layer) is nn.Linear and layer.weight.data_ptr() == grouped.data_ptr()
            for layer, grouped in zip(first, self.grouped, strict=True)
        )

    def run_grouped(self, tokens: paddle.Tensor, topk_idx: paddle.Tensor) -> paddle.Tensor:
        """The outputs of each token's experts, by grouped weights.

        Args:
            tokens: [M, H].
            topk_idx: int64 [M, K].

        Returns:
            [M * K, H].
        """
        index = topk_idx.flatten()
        gate, up, down = (paddle.gather(weights, index) for weights in self.grouped)
        rows = tokens.unsqueeze(1).expand([-1, topk_idx.shape[1], -1]).reshape([index.size, 1, -1])
        inner = F.silu(paddle.bmm(rows, gate)) * paddle.bmm(rows, up)
        return paddle.bmm(inner, down).squeeze(1)

    def __getitem__(self, index: int) -> DeepseekV2MLP:
        return self._sub_layers[str(index)]

    def __iter__(self) -> Iterator[DeepseekV2MLP]:
        return iter(self._sub_layers.values())

    def __len__(self) -> int:
        return len(self._sub_layers)
