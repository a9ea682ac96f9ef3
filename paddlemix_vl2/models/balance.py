"""Balance losses of the router: pure functions of the scores and the choices of one mixture layer.

Sources: DeepSeekMoE (arXiv 2401.06066, eq. 12 to 17), DeepSeek-V2 (arXiv 2405.04434, eq. 23 to 31), and the
sequence-wise form of the published ``MoEGate``. All count tokens per expert without a gradient and weigh the
mean scores, which have one; scores are divided by their sum over the experts first, which changes nothing
for a softmax and keeps a loss on sigmoids from pushing every score down (DeepSeek-V3, arXiv 2412.19437,
eq. 18). M tokens, K choices each, E experts, D devices of E / D neighbouring experts.

The losses over a whole batch take ``total``, which sums a vector over the processes that share the batch: a
process then gets the loss of the whole batch as far as its own scores count, and the mean over the processes
is that loss. Without it the process's own tokens are the batch.
"""

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from paddlemix_vl2.models.precision import keeps_float32


class AddAuxiliaryLoss(PyLayer):
    """Identity on ``loss`` that hands its gradient on to ``auxiliary`` too: the balance loss is trained on
    without being part of the reported loss.

    The published ``AddAuxiliaryLoss`` sits on the hidden states and gives the balance loss a gradient of one;
    here it sits on the loss, so that a factor on it (accumulation, loss scaling) reaches both.
    """

    @staticmethod
    def forward(ctx, loss: paddle.Tensor, auxiliary: paddle.Tensor) -> paddle.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx, grad: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return grad, grad.clone()


Total = Callable[[paddle.Tensor], paddle.Tensor]


@keeps_float32
def sequence_balance_loss(
    scores: paddle.Tensor, experts: paddle.Tensor, segments: paddle.Tensor
) -> paddle.Tensor:
    """mean over sequences of sum_e f_e P_e; f_e is the share of the sequence's choices that fell on expert e,
    times E, and P_e its mean score (published ``seq_aux``).

    Args:
        scores: float32 [M, E], with gradient.
        experts: int64 [M, K].
        segments: from :func:`number_segments`, int64 [M]: which sequence a token is of, -1 for none.

    Returns:
        float32 scalar; 1 where every expert is chosen evenly and all scores are alike.
    """
    count = int(segments.max()) + 1
    members = F.one_hot(segments + 1, count + 1)[:, 1:]  # [M, sequences]
    lengths = members.sum(axis=0).unsqueeze(-1)  # [sequences, 1]
    chosen = F.one_hot(experts, scores.shape[-1]).sum(axis=1)  # [M, E]
    shares = paddle.matmul(members, chosen, transpose_x=True) / (lengths * experts.shape[-1])
    mean_scores = paddle.matmul(members, _normalized(scores), transpose_x=True) / lengths
    return (shares * scores.shape[-1] * mean_scores).sum(axis=-1).mean()


def expert_balance_loss(scores, experts, segments, total: Total | None = None) -> paddle.Tensor:
    """sum_e f_e P_e over the tokens of the whole batch (arXiv 2401.06066, eq. 12); arguments as above."""
    return device_balance_loss(scores, experts, segments, scores.shape[-1], total)


@keeps_float32
def device_balance_loss(
    scores, experts, segments, num_devices: int, total: Total | None = None
) -> paddle.Tensor:
    """sum_d f'_d P'_d with f' the mean of f over a device's experts and P' the sum of P (arXiv 2401.06066,
    eq. 15)."""
    scores, experts = _used(scores, experts, segments)
    per_device = scores.shape[-1] // num_devices
    load = F.one_hot(experts // per_device, num_devices).sum(axis=[0, 1])  # [D]
    load, num_tokens, weight = _of_batch(load, scores.shape[0], total)
    shares = load * scores.shape[-1] / (num_tokens * experts.shape[-1]) / per_device
    return (shares * _mean_per_device(scores, num_devices)).sum() * weight


@keeps_float32
def communication_balance_loss(
    scores, experts, segments, num_devices: int, devices_per_token: int, total: Total | None = None
) -> paddle.Tensor:
    """sum_d f''_d P''_d with f''_d = D / (M T) times the tokens sent to device d, M here the bound on devices
    per token (arXiv 2405.04434, eq. 29 to 31)."""
    scores, experts = _used(scores, experts, segments)
    per_device = scores.shape[-1] // num_devices
    sent = F.one_hot(experts // per_device, num_devices).max(axis=1).sum(axis=0)  # [D]
    sent, num_tokens, weight = _of_batch(sent, scores.shape[0], total)
    shares = sent * num_devices / (devices_per_token * num_tokens)
    return (shares * _mean_per_device(scores, num_devices)).sum() * weight


def _mean_per_device(scores: paddle.Tensor, num_devices: int) -> paddle.Tensor:
    """Mean scores [M, E], summed over each device's experts: [D]."""
    return scores.mean(axis=0).reshape([num_devices, -1]).sum(axis=-1)


def _of_batch(load: paddle.Tensor, num_tokens: int, total: Total | None):
    """``load`` [D] and the tokens of the whole batch, and the weight of this process's mean score in it,
    times the number of processes."""
    if total is None:
        return load, num_tokens, 1.0
    counts = total(paddle.concat([load, paddle.to_tensor([num_tokens, 1.0], dtype=load.dtype)]))
    return counts[:-2], counts[-2], num_tokens * counts[-1] / counts[-2]


def number_segments(segment_ids: paddle.Tensor) -> paddle.Tensor:
    """Number the samples of a batch through: [B, T] with 0 on padding and 1, 2, ... per row -> int64 [B * T],
    -1 on padding, else 0, 1, ... without gaps."""
    per_row = segment_ids.astype("int64").max(axis=1)
    before = (per_row.cumsum(axis=0) - per_row).unsqueeze(-1)
    numbered = paddle.where(segment_ids > 0, segment_ids.astype("int64") + before - 1, -1)
    return numbered.flatten()


def _used(scores, experts, segments) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Normalised scores and choices without padding."""
    used = paddle.nonzero(segments >= 0).flatten()
    return _normalized(paddle.gather(scores, used)), paddle.gather(experts, used)


def _normalized(scores: paddle.Tensor) -> paddle.Tensor:
    return scores / (scores.sum(axis=-1, keepdim=True) + 1e-20)
