"""Balance losses of the router: pure functions of the scores and the choices of one mixture layer.

Sources: DeepSeekMoE (arXiv 2401.06066, eq. 12 to 17), DeepSeek-V2 (arXiv 2405.04434, eq. 23 to 31), and the
sequence-wise form of the published ``MoEGate``. All count tokens per expert without a gradient and weigh the
mean scores, which have one; scores are divided by their sum over the experts first, which changes nothing
for a softmax and keeps a loss on sigmoids from pushing every score down (DeepSeek-V3, arXiv 2412.19437,
eq. 18). M tokens, K choices each, E experts, D devices of E / D neighbouring experts.

The losses over a batch are made of its loads, which several processes may add up first. Each then gets the
loss of the whole batch as far as its own scores count: the mean over the processes is that loss.
"""

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


@paddle.no_grad()
def batch_loads(experts: paddle.Tensor, segments: paddle.Tensor, num_experts: int, num_devices: int = 1):
    """What the losses over a whole batch count in one layer, padding aside.

    Args:
        experts, segments: as above.

    Returns:
        float32 [E + D + 2]: choices of each expert, tokens sent to each device, tokens, and 1, which becomes
        the number of the processes that add theirs.
    """
    used = (segments >= 0).astype("float32").unsqueeze(0)  # [1, M]
    choices = paddle.matmul(used, F.one_hot(experts, num_experts).sum(axis=1)).flatten()
    devices = F.one_hot(experts // (num_experts // num_devices), num_devices)
    sent = paddle.matmul(used, devices.max(axis=1)).flatten()
    return paddle.concat([choices, sent, used.sum().reshape([1]), paddle.ones([1])])


def expert_balance_loss(scores, segments, loads) -> paddle.Tensor:
    """sum_e f_e P_e over the tokens of a batch (arXiv 2401.06066, eq. 12): every expert a device of its own.

    Args:
        scores: float32 [M, E] of this process, with gradient.
        segments: int64 [M], -1 on padding.
        loads: from :func:`batch_loads`, of this process or added up.

    Returns:
        float32 scalar.
    """
    return device_balance_loss(scores, segments, loads, num_devices=scores.shape[-1])


@keeps_float32
def device_balance_loss(scores, segments, loads, num_devices: int) -> paddle.Tensor:
    """sum_d f'_d P'_d with f' the mean of f over a device's experts and P' the sum of P (arXiv 2401.06066,
    eq. 15); arguments and result as above."""
    num_experts = scores.shape[-1]
    choices = loads[:num_experts]
    fractions = (choices * num_experts / choices.sum()).reshape([num_devices, -1]).mean(axis=-1)
    return (fractions * _device_scores(scores, segments, loads, num_devices)).sum()


@keeps_float32
def communication_balance_loss(
    scores, segments, loads, num_devices: int, devices_per_token: int
) -> paddle.Tensor:
    """sum_d f''_d P''_d with f''_d = D / (M T) times the tokens sent to device d, M here the bound on devices
    per token (arXiv 2405.04434, eq. 29 to 31); arguments and result as above."""
    sent, tokens = loads[-2 - num_devices : -2], loads[-2]
    shares = sent * num_devices / (devices_per_token * tokens)
    return (shares * _device_scores(scores, segments, loads, num_devices)).sum()


def _device_scores(scores, segments, loads, num_devices: int) -> paddle.Tensor:
    """P', float32 [D]: this process's part of the mean score over the batch, times the number of processes,
    added up per device."""
    tokens, processes = loads[-2], loads[-1]
    used = (segments >= 0).astype("float32").unsqueeze(0)
    mean_scores = paddle.matmul(used, _normalized(scores)) * processes / tokens
    return mean_scores.reshape([num_devices, -1]).sum(axis=-1)


def number_segments(segment_ids: paddle.Tensor) -> paddle.Tensor:
    """Number the samples of a batch through: [B, T] with 0 on padding and 1, 2, ... per row -> int64 [B * T],
    -1 on padding, else 0, 1, ... without gaps."""
    per_row = segment_ids.astype("int64").max(axis=1)
    before = (per_row.cumsum(axis=0) - per_row).unsqueeze(-1)
    numbered = paddle.where(segment_ids > 0, segment_ids.astype("int64") + before - 1, -1)
    return numbered.flatten()


def _normalized(scores: paddle.Tensor) -> paddle.Tensor:
    return scores / (scores.sum(axis=-1, keepdim=True) + 1e-20)
