"""AdamW with a learning rate per part of the model, and the paper's three schedules."""

import math

import paddle
from paddle import nn
from paddle.optimizer.lr import LambdaDecay

from paddlemix_vl2.training.parts import part_of, trained
from paddlemix_vl2.training.recipe import PARTS, VL2TrainingArguments


def make_schedule(arguments: VL2TrainingArguments) -> LambdaDecay:
    """The learning rate over the optimizer steps: linear warm-up, then ``cosine`` to zero, ``constant``, or
    ``step``: divided by sqrt(10) at 50 % and again at 75 % of the steps (arXiv 2412.10302, table 2)."""
    total = arguments.max_steps
    warmup = arguments.warmup_steps or int(arguments.warmup_ratio * total)
    after_warmup = {"cosine": _cosine, "constant": _constant, "step": _step}[arguments.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return after_warmup(step, warmup, total)

    return LambdaDecay(arguments.learning_rate, factor)


def _cosine(step: int, warmup: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def _constant(step: int, warmup: int, total: int) -> float:
    return 1.0


def _step(step: int, warmup: int, total: int) -> float:
    return 10 ** (-0.5 * ((step >= total * 0.5) + (step >= total * 0.75)))


def make_optimizer(
    model: nn.Layer, arguments: VL2TrainingArguments, schedule: LambdaDecay
) -> paddle.optimizer.AdamW:
    """AdamW over what trains. Vectors (norms, biases, newline and separator) do not decay.

    Raises:
        ValueError: the recipe trains nothing.
    """
    groups: dict[tuple[str, bool], list] = {}
    for name, parameter in trained(model):
        groups.setdefault((part_of(name), parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise ValueError(f"nothing trains: {', '.join(PARTS)} are all frozen")
    return paddle.optimizer.AdamW(
        learning_rate=schedule,
        beta1=arguments.adam_beta1,
        beta2=arguments.adam_beta2,
        epsilon=arguments.adam_epsilon,
        parameters=[
            {
                "params": parameters,
                "learning_rate": getattr(arguments, part).learning_rate_multiplier,
                "weight_decay": arguments.weight_decay if decays else 0.0,
            }
            for (part, decays), parameters in groups.items()
        ],
        multi_precision=arguments.bf16,
    )
