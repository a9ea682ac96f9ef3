"""Balance losses: pure functions of the routings of the MoE layers, named, weighted and summed here.

Sources: DeepSeekMoE (arXiv 2401.06066, eq. 12 to 17), DeepSeek-V2 (arXiv 2405.04434, eq. 23 to 31), and the
sequence-wise form of the published ``MoEGate``. All count tokens per expert without a gradient and weigh the
mean scores, which have one; scores are divided by their sum over the experts first, which changes nothing
for a softmax and keeps a loss on sigmoids from pushing every score down (DeepSeek-V3, arXiv 2412.19437,
eq. 18). M tokens, K choices each, E experts, D groups of E / D neighbouring experts (devices in the papers).

What a factor means. Each loss is a mean: the ``sequence`` loss over the sequences of the micro-batch, the
others over its tokens, together with those of all processes where ``all_reduce`` adds up what they count.
So that the gradient is that of the mean over everything in an optimizer step, the ``sequence`` loss of a
micro-batch counts by its sequences, the others evenly; :mod:`paddlemix_vl2.training.losses` has the factors.
The losses of all layers are added up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.moe.routing import Routing

AllReduce = Callable[[paddle.Tensor], paddle.Tensor]
SEQUENCE = "sequence"
BATCH_LOSSES = ("expert", "device", "communication")
LOSSES = (SEQUENCE, *BATCH_LOSSES)


@dataclass(frozen=True)
class Segments:
    """Which sequence each of M tokens is of.

    Attributes:
        ids: int64 [M], numbered through over the batch, -1 on padding.
        count: number of sequences; known to the host, so that nothing has to be read back.
    """

    ids: paddle.Tensor
    count: int

    @classmethod
    def of_rows(cls, batch: int, length: int) -> "Segments":
        """Every row of [B, T] a sequence, padding included, as the published code has it."""
        return cls(paddle.arange(batch).unsqueeze(1).expand([batch, length]).flatten(), batch)


@dataclass(frozen=True)
class BalanceLosses:
    """Which losses a model is trained on, and how they are counted.

    Attributes:
        weights: name, one of ``LOSSES``, -> factor. Those of factor 0 are not computed.
        num_groups: D of the ``device`` and ``communication`` losses.
        groups_per_token: groups that a token's experts can be in at most, M of DeepSeek-V2.
        all_reduce: gives the sum over the processes that share a batch; None for one process.
    """

    weights: Mapping[str, float]
    num_groups: int = 1
    groups_per_token: int = 1
    all_reduce: AllReduce | None = None

    @classmethod
    def of_config(cls, config: DeepseekV2Config) -> "BalanceLosses":
        """The one loss of the published config: ``aux_loss_alpha`` of the sequences, or with ``seq_aux``
        false of the batch."""
        return cls({SEQUENCE if config.seq_aux else "expert": config.aux_loss_alpha})

    def __call__(self, routings: Sequence[Routing], segments: Segments) -> dict[str, paddle.Tensor]:
        """Each loss times its weight, summed over the layers.

        Args:
            routings: one per MoE layer.
            segments: of the M tokens.

        Returns:
            name -> float32 scalar, for those with a weight; nothing without MoE layers.
        """
        if paddle.amp.is_autocast_enabled():  # which would compute in 16 bits
            with paddle.amp.auto_cast(enable=False):
                return self(routings, segments)
        wanted = {name: weight for name, weight in self.weights.items() if weight}
        if not routings or not wanted:
            return {}
        terms: dict[str, list[paddle.Tensor]] = {name: [] for name in wanted}
        if SEQUENCE in wanted:
            terms[SEQUENCE] = [sequence_balance_loss(r.scores, r.topk_idx, segments) for r in routings]
        if wanted.keys() & set(BATCH_LOSSES):
            for routing, counts in zip(routings, self._count(routings, segments), strict=True):
                for name in wanted.keys() & set(BATCH_LOSSES):
                    terms[name].append(self._batch_loss(name, routing.scores, segments, counts))
        return {name: wanted[name] * paddle.add_n(losses) for name, losses in terms.items()}

    def total(self, routings: Sequence[Routing], segments: Segments) -> paddle.Tensor | None:
        """The sum of all losses; None where there is none."""
        losses = list(self(routings, segments).values())
        return paddle.add_n(losses) if losses else None

    def _count(self, routings: Sequence[Routing], segments: Segments) -> paddle.Tensor:
        """:func:`count_routed` of every layer, float32 [layers, E + D + 2]; over all processes."""
        experts = routings[0].scores.shape[-1]
        counts = [count_routed(r.topk_idx, segments, experts, self.num_groups) for r in routings]
        stacked = paddle.stack(counts)
        return stacked if self.all_reduce is None else self.all_reduce(stacked)

    def _batch_loss(self, name: str, scores, segments, counts) -> paddle.Tensor:
        if name == "expert":
            return expert_balance_loss(scores, segments, counts)
        if name == "device":
            return device_balance_loss(scores, segments, counts, self.num_groups)
        return communication_balance_loss(scores, segments, counts, self.num_groups, self.groups_per_token)


class AddAuxiliaryLoss(PyLayer):
    """Identity on ``output`` that gives ``aux_loss`` a gradient of one: the balance loss is trained on
    without being part of the output (published ``AddAuxiliaryLoss``)."""

    @staticmethod
    def forward(ctx, output: paddle.Tensor, aux_loss: paddle.Tensor) -> paddle.Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx, grad: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return grad, paddle.ones([], grad.dtype)


def sequence_balance_loss(
    scores: paddle.Tensor, topk_idx: paddle.Tensor, segments: Segments
) -> paddle.Tensor:
    """mean over sequences of sum_e f_e P_e; f_e is the share of the sequence's choices that fell on expert e,
    times E, and P_e its mean score (published ``seq_aux``).

    Args:
        scores: float32 [M, E], with gradient.
        topk_idx: int64 [M, K].
        segments: of the tokens.

    Returns:
        float32 scalar; 1 where every expert is chosen evenly and all scores are alike.
    """
    members = F.one_hot(segments.ids + 1, segments.count + 1)[:, 1:]  # [M, sequences]
    lengths = members.sum(axis=0).unsqueeze(-1)  # [sequences, 1]
    chosen = F.one_hot(topk_idx, scores.shape[-1]).sum(axis=1)  # [M, E]
    shares = paddle.matmul(members, chosen, transpose_x=True) / (lengths * topk_idx.shape[-1])
    mean_scores = paddle.matmul(members, _normalized(scores), transpose_x=True) / lengths
    return (shares * scores.shape[-1] * mean_scores).sum(axis=-1).mean()


@paddle.no_grad()
def count_routed(topk_idx: paddle.Tensor, segments: Segments, num_experts: int, num_groups: int = 1):
    """What the losses over a whole batch count in one layer, padding aside.

    Args:
        topk_idx, segments: as above.

    Returns:
        float32 [E + D + 2]: choices of each expert, tokens sent to each group, tokens, and 1, which becomes
        the number of the processes that add theirs.
    """
    used = (segments.ids >= 0).astype("float32").unsqueeze(0)  # [1, M]
    choices = paddle.matmul(used, F.one_hot(topk_idx, num_experts).sum(axis=1)).flatten()
    groups = F.one_hot(topk_idx // (num_experts // num_groups), num_groups)
    sent = paddle.matmul(used, groups.max(axis=1)).flatten()
    return paddle.concat([choices, sent, used.sum().reshape([1]), paddle.ones([1])])


def expert_balance_loss(scores, segments, counts) -> paddle.Tensor:
    """sum_e f_e P_e over the tokens of a batch (arXiv 2401.06066, eq. 12): every expert a group of its own.

    Args:
        scores: float32 [M, E] of this process, with gradient.
        segments: of the tokens.
        counts: from :func:`count_routed`, of this process or added up. Each process then gets the loss of
            the whole batch as far as its own scores count: the mean over the processes is that loss.

    Returns:
        float32 scalar; 1 at balance.
    """
    return device_balance_loss(scores, segments, counts, num_groups=scores.shape[-1])


def device_balance_loss(scores, segments, counts, num_groups: int) -> paddle.Tensor:
    """sum_d f'_d P'_d with f' the mean of f over a group's experts and P' the sum of P (arXiv 2401.06066,
    eq. 15); arguments and result as above."""
    num_experts = scores.shape[-1]
    choices = counts[:num_experts]
    fractions = (choices * num_experts / choices.sum()).reshape([num_groups, -1]).mean(axis=-1)
    return (fractions * _group_scores(scores, segments, counts, num_groups)).sum()


def communication_balance_loss(
    scores, segments, counts, num_groups: int, groups_per_token: int
) -> paddle.Tensor:
    """sum_d f''_d P''_d with f''_d = D / (M T) times the tokens sent to group d, M here the bound on groups
    per token (arXiv 2405.04434, eq. 29 to 31); arguments and result as above."""
    sent, tokens = counts[-2 - num_groups : -2], counts[-2]
    shares = sent * num_groups / (groups_per_token * tokens)
    return (shares * _group_scores(scores, segments, counts, num_groups)).sum()


def _group_scores(scores, segments, counts, num_groups: int) -> paddle.Tensor:
    """P', float32 [D]: this process's part of the mean score over the batch, times the number of processes,
    added up per group."""
    tokens, processes = counts[-2], counts[-1]
    used = (segments.ids >= 0).astype("float32").unsqueeze(0)
    mean_scores = paddle.matmul(used, _normalized(scores)) * processes / tokens
    return mean_scores.reshape([num_groups, -1]).sum(axis=-1)


def _normalized(scores: paddle.Tensor) -> paddle.Tensor:
    return scores / (scores.sum(axis=-1, keepdim=True) + 1e-20)
