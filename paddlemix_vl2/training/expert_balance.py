"""How a run keeps the loads of the experts even: balance losses, the bias that levels them, and what is
dropped.

Sources: arXiv 2408.15664: after each batch the bias of every expert moves by u * sign(mean load - load);
DeepSeek-V2 (arXiv 2405.04434, section 2.2.4): about a tenth of the sequences is protected from dropping.
"""

import math
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import nn

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.moe.losses import SEQUENCE, AllReduce, BalanceLosses
from paddlemix_vl2.models.moe.routers import MoEGate
from paddlemix_vl2.training.recipe import VL2TrainingArguments

# First entry of the seeds, so that what is protected has nothing to do with the order of the data.
_PROTECTION = 2


def make_balance_losses(
    config: DeepseekV2Config, arguments: VL2TrainingArguments, all_reduce: AllReduce | None = None
) -> BalanceLosses:
    """The balance losses of a recipe: that of the config, by its ``aux_loss_alpha`` or the recipe's, and
    DeepSeek-V2's over experts, groups of them and communication.

    Args:
        all_reduce: gives the sum over the processes that train together.
    """
    alpha = config.aux_loss_alpha if arguments.aux_loss_alpha is None else arguments.aux_loss_alpha
    weights = {
        SEQUENCE: alpha if config.seq_aux else 0.0,
        "expert": arguments.expert_balance_alpha + (0.0 if config.seq_aux else alpha),
        "device": arguments.device_balance_alpha,
        "communication": arguments.communication_balance_alpha,
    }
    groups = arguments.expert_groups
    return BalanceLosses(weights, groups, max_groups_per_token(config, groups), all_reduce)


def max_groups_per_token(config: DeepseekV2Config, num_groups: int) -> int:
    """Groups that a token's experts can be in at most: M of DeepSeek-V2 where routing is limited to groups,
    else as many as a token has experts."""
    most = min(num_groups, config.num_experts_per_tok or 1)
    routing_groups = config.n_group or 1
    if config.topk_method == "greedy" or routing_groups == 1:
        return most
    return min(most, (config.topk_group or 1) * math.ceil(num_groups / routing_groups))


def protect(
    sample_indices: Sequence[Sequence[int]], segment_ids: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Which tokens of a micro-batch are of protected samples, bool [B, T].

    Whether a sample is protected follows from its index in the mixture and the seed alone: it is the same on
    whichever process, and in a run that was resumed.

    Args:
        sample_indices: of each row those of its samples, in order.
        segment_ids: int64 [B, T], 1, 2, ... for the samples of a row and 0 on padding.
        share: of the samples that is protected, on the average.
    """
    flags = np.zeros([len(sample_indices), 1 + max(map(len, sample_indices))], dtype=bool)
    for row, numbers in zip(flags, sample_indices, strict=True):
        chances = [np.random.default_rng([_PROTECTION, seed, number]).random() for number in numbers]
        row[1 : 1 + len(numbers)] = np.array(chances) < share
    return np.take_along_axis(flags, segment_ids, axis=1)


def gates(model: nn.Layer) -> list[MoEGate]:
    """The routers in the order of the layers."""
    return [layer for layer in model.sublayers() if isinstance(layer, MoEGate)]


def update_bias(model: nn.Layer, tokens_per_expert: paddle.Tensor, speed: float) -> None:
    """Move every router's correction bias a step of ``speed`` towards even loads, float32 [layers, E]."""
    for gate, counts in zip(gates(model), tokens_per_expert, strict=True):
        gate.move_bias(counts, speed)
