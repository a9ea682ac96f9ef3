"""The router's loads over an optimizer step: statistics, loss-free balancing, and what is dropped.

Sources: arXiv 2408.15664: after each batch the bias of every expert moves by u * sign(mean load - load);
DeepSeek-V2 (arXiv 2405.04434, section 2.2.4): about a tenth of the sequences is protected from dropping.
"""

import math
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import nn

from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.dropping import TokenDropping
from paddlemix_vl2.models.moe import DeepseekV2MoE, MoEGate, Routing

# First entry of the seeds, so that what is protected has nothing to do with the order of the data.
_PROTECTION = 2


class RouterLoads:
    """Adds up, over the micro-batches of an optimizer step, how the tokens were routed.

    Attributes:
        loads: float32 [layers, E], tokens per expert; padding does not count.
        entropy: float32 [layers], sum over tokens of the entropy of the router's scores, in nats.
        dropped: float32 [layers], pairs of token and choice that were dropped.
        tokens: float32 scalar.
    """

    def __init__(self):
        self.loads = self.entropy = self.dropped = self.tokens = None

    @paddle.no_grad()
    def add(self, routings: tuple[Routing, ...], segment_ids: paddle.Tensor) -> None:
        """Count the tokens of a micro-batch; ``segment_ids`` int64 [B, T] is 0 on padding."""
        if not routings:
            return
        used = (segment_ids.flatten() > 0).astype("float32")
        loads, entropies, dropped = [], [], []
        for routing in routings:
            experts, scores = routing.experts, routing.scores.detach()
            weights = used.unsqueeze(-1).expand(experts.shape).flatten()
            loads.append(paddle.bincount(experts.flatten(), weights, minlength=scores.shape[-1]))
            shares = scores / scores.sum(axis=-1, keepdim=True)
            entropies.append((-(shares * (shares + 1e-20).log()).sum(axis=-1) * used).sum())
            kept = weights if routing.kept is None else weights * routing.kept.flatten().astype("float32")
            dropped.append((weights - kept).sum())
        step = paddle.stack(loads).astype("float32"), paddle.stack(entropies), paddle.stack(dropped)
        step = (*step, used.sum())
        if self.loads is not None:
            step = tuple(old + new for old, new in zip(self._sums(), step, strict=True))
        self.loads, self.entropy, self.dropped, self.tokens = step

    def reduce(self) -> None:
        """Sum over the processes."""
        for tensor in self._sums():
            paddle.distributed.all_reduce(tensor)

    def _sums(self) -> tuple[paddle.Tensor, ...]:
        return self.loads, self.entropy, self.dropped, self.tokens

    def statistics(self) -> dict[str, list]:
        """Per layer: ``max_vio`` = (max load - mean) / mean (arXiv 2408.15664), mean ``entropy`` of a token's
        scores in nats, ``load``, the share of the choices per expert, and ``dropped_share``, that of the
        choices which were dropped."""
        mean = self.loads.mean(axis=-1)
        return {
            "max_vio": ((self.loads.max(axis=-1) - mean) / mean.clip(min=1e-9)).tolist(),
            "entropy": (self.entropy / self.tokens).tolist(),
            "load": (self.loads / self.loads.sum(axis=-1, keepdim=True)).tolist(),
            "dropped_share": (self.dropped / self.loads.sum(axis=-1)).tolist(),
        }


def most_devices(config: DeepseekV2Config, num_devices: int) -> int:
    """Devices that a token's experts can be on at most: M of DeepSeek-V2 where routing is limited to groups,
    else as many as a token has experts."""
    most = min(num_devices, config.num_experts_per_tok)
    groups = config.n_group or 1
    if config.topk_method == "greedy" or groups == 1:
        return most
    return min(most, config.topk_group * math.ceil(num_devices / groups))


def protect(draws: Sequence[Sequence[int]], segment_ids: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which tokens of a micro-batch are of protected samples, bool [B, T].

    Whether a sample is protected follows from the number of its draw and the seed alone: it is the same on
    whichever process, and in a run that was resumed.

    Args:
        draws: of each row the numbers of its samples' draws, in order.
        segment_ids: int64 [B, T], 1, 2, ... for the samples of a row and 0 on padding.
        share: of the samples that is protected, on the average.
    """
    flags = np.zeros([len(draws), 1 + max(map(len, draws))], dtype=bool)
    for row, numbers in zip(flags, draws, strict=True):
        chances = [np.random.default_rng([_PROTECTION, seed, number]).random() for number in numbers]
        row[1 : 1 + len(numbers)] = np.array(chances) < share
    return np.take_along_axis(flags, segment_ids, axis=1)


def set_dropping(model: nn.Layer, dropping: TokenDropping | None) -> None:
    """What all mixtures drop of the next micro-batch; its layers that are recomputed drop the same."""
    for layer in model.sublayers():
        if isinstance(layer, DeepseekV2MoE):
            layer.dropping = dropping


def gates(model: nn.Layer) -> list[MoEGate]:
    """The routers in the order of the layers."""
    return [layer for layer in model.sublayers() if isinstance(layer, MoEGate)]


@paddle.no_grad()
def update_bias(model: nn.Layer, loads: paddle.Tensor, speed: float) -> None:
    """Move every router's correction bias a step of ``speed`` towards even loads, float32 [layers, E]."""
    for gate, load in zip(gates(model), loads, strict=True):
        gate.e_score_correction_bias.add_(speed * paddle.sign(load.mean() - load))
