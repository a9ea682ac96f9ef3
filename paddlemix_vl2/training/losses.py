"""The loss of a micro-batch, weighted by its share of the optimizer step.

The step's loss is the mean over everything in it, over all micro-batches and processes. The gradients of the
processes are averaged afterwards and those of the micro-batches added up, so that a micro-batch's term counts
by its share, times the processes:

============================  ==========================================================================
next-token loss               its targets among all targets of the step
balance loss ``sequence``     its samples among all samples of the step
balance losses over a batch   evenly, 1 / accumulation: they are those of all processes already
============================  ==========================================================================
"""

from dataclasses import dataclass

import paddle

from paddlemix_vl2.models.moe.losses import SEQUENCE
from paddlemix_vl2.models.vision_language import VisionLanguageOutput


@dataclass(frozen=True)
class StepShares:
    """Attributes:
    num_targets, num_samples: of the micro-batch, in this process.
    step_targets, step_samples: of the step, over all micro-batches and processes.
    accumulation: micro-batches of a step in a process.
    processes: those that train together.
    """

    num_targets: int
    num_samples: int
    step_targets: float
    step_samples: float
    accumulation: int
    processes: int

    @property
    def by_tokens(self) -> float:
        return self.num_targets * self.processes / max(self.step_targets, 1)

    @property
    def by_samples(self) -> float:
        return self.num_samples * self.processes / self.step_samples

    def factor(self, balance_loss: str) -> float:
        """The factor of a balance loss."""
        return self.by_samples if balance_loss == SEQUENCE else 1 / self.accumulation


def micro_loss(output: VisionLanguageOutput, shares: StepShares) -> paddle.Tensor:
    """The micro-batch's part of the step's loss. Its value is that of the next-token loss alone, its gradient
    that of the balance losses too."""
    loss = output.next_token_loss * shares.by_tokens
    for name, balance_loss in output.balance_losses.items():
        term = balance_loss * shares.factor(name)
        loss = loss + (term - term.detach())
    return loss
