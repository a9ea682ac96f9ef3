"""The router's loads over an optimizer step: statistics, and loss-free balancing.

Source: arXiv 2408.15664: after each batch the bias of every expert moves by u * sign(mean load - load).
"""

import math

import paddle
from paddle import nn

from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.moe import MoEGate, Routing


class RouterLoads:
    """Adds up, over the micro-batches of an optimizer step, how the tokens were routed.

    Attributes:
        loads: float32 [layers, E], tokens per expert; padding does not count.
        entropy: float32 [layers], sum over tokens of the entropy of the router's scores, in nats.
        tokens: float32 scalar.
    """

    def __init__(self):
        self.loads = self.entropy = self.tokens = None

    @paddle.no_grad()
    def add(self, routings: tuple[Routing, ...], segment_ids: paddle.Tensor) -> None:
        """Count the tokens of a micro-batch; ``segment_ids`` int64 [B, T] is 0 on padding."""
        if not routings:
            return
        used = (segment_ids.flatten() > 0).astype("float32")
        loads, entropies = [], []
        for routing in routings:
            experts, scores = routing.experts, routing.scores.detach()
            weights = used.unsqueeze(-1).expand(experts.shape).flatten()
            loads.append(paddle.bincount(experts.flatten(), weights, minlength=scores.shape[-1]))
            shares = scores / scores.sum(axis=-1, keepdim=True)
            entropies.append((-(shares * (shares + 1e-20).log()).sum(axis=-1) * used).sum())
        step = paddle.stack(loads).astype("float32"), paddle.stack(entropies), used.sum()
        if self.loads is None:
            self.loads, self.entropy, self.tokens = step
        else:
            self.loads, self.entropy, self.tokens = (
                old + new for old, new in zip((self.loads, self.entropy, self.tokens), step, strict=True)
            )

    def reduce(self) -> None:
        """Sum over the processes."""
        for tensor in (self.loads, self.entropy, self.tokens):
            paddle.distributed.all_reduce(tensor)

    def statistics(self) -> dict[str, list]:
        """Per layer: ``max_vio`` = (max load - mean) / mean (arXiv 2408.15664), mean ``entropy`` of a token's
        scores in nats, and ``load``, the share of the choices per expert."""
        mean = self.loads.mean(axis=-1)
        return {
            "max_vio": ((self.loads.max(axis=-1) - mean) / mean.clip(min=1e-9)).tolist(),
            "entropy": (self.entropy / self.tokens).tolist(),
            "load": (self.loads / self.loads.sum(axis=-1, keepdim=True)).tolist(),
        }


def most_devices(config: DeepseekV2Config, num_devices: int) -> int:
    """Devices that a token's experts can be on at most: M of DeepSeek-V2 where routing is limited to groups,
    else as many as a token has experts."""
    most = min(num_devices, config.num_experts_per_tok)
    groups = config.n_group or 1
    if config.topk_method == "greedy" or groups == 1:
        return most
    return min(most, config.topk_group * math.ceil(num_devices / groups))


def gates(model: nn.Layer) -> list[MoEGate]:
    """The routers in the order of the layers."""
    return [layer for layer in model.sublayers() if isinstance(layer, MoEGate)]


@paddle.no_grad()
def update_bias(model: nn.Layer, loads: paddle.Tensor, speed: float) -> None:
    """Move every router's correction bias a step of ``speed`` towards even loads, float32 [layers, E]."""
    for gate, load in zip(gates(model), loads, strict=True):
        gate.e_score_correction_bias.add_(speed * paddle.sign(load.mean() - load))
