"""What a run logs: where its time goes, how the routers route, and ``metrics.jsonl``."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from paddlemix_vl2.files import METRICS_FILE

ROUTER_SCALARS = ("max_vio", "entropy", "dropped_share")


class StepMetrics:
    """Collects over the optimizer steps between two lines of the log.

    Attributes:
        seconds: phase (``data``, ``forward``, ``backward``, ``optimizer``) -> seconds.
        tokens: without padding, of this process.
        gradient_norm, learning_rate: of the last step, before clipping.
        router: of the last step, by name, layer by layer.
        num_broken: samples that were left out.
    """

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.tokens = 0
        self.gradient_norm: float | None = None
        self.learning_rate = 0.0
        self.router: dict[str, list] = {}
        self.num_broken = 0
        self._tile_imbalances: list[tuple[float, float]] = []

    def add_seconds(self, phase: str, seconds: float) -> None:
        self.seconds[phase] += seconds

    def add_batch(self, num_tokens: int, num_broken: int) -> None:
        """Count a micro-batch's tokens; ``num_broken`` counts since the run's beginning."""
        self.tokens += num_tokens
        self.num_broken = num_broken

    def set_update(self, gradient_norm: float, learning_rate: float) -> None:
        self.gradient_norm, self.learning_rate = gradient_norm, learning_rate

    def set_router(self, values: dict[str, list]) -> None:
        self.router = values

    def add_tile_imbalance(self, before_and_after: tuple[float, float] | None) -> None:
        """Most tiles of a rank over the ranks' mean in a step, as assigned by the mixture and as computed."""
        if before_and_after:
            self._tile_imbalances.append(before_and_after)

    def take(self, world_size: int, with_drops: bool) -> tuple[dict, dict]:
        """Scalars for the log line and VisualDL, and what is too long for them; then starts over.

        Args:
            world_size: processes, which have as many tokens as this one.
            with_drops: whether the run drops tokens.
        """
        total = sum(self.seconds.values()) or 1.0
        scalars: dict[str, float] = {"learning_rate": self.learning_rate}
        if self.gradient_norm is not None:
            scalars["grad_norm"] = round(self.gradient_norm, 4)
        scalars["tokens_per_second"] = round(self.tokens * world_size / total, 1)
        scalars |= {f"share_{phase}": round(spent / total, 3) for phase, spent in self.seconds.items()}
        if self.num_broken:
            scalars["broken_samples"] = self.num_broken
        if self._tile_imbalances:
            before, after = np.mean(self._tile_imbalances, axis=0)
            scalars["tile_imbalance_before"], scalars["tile_imbalance"] = round(before, 4), round(after, 4)
        router_scalars, record = self._router_record(with_drops)
        record["seconds"] = {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}
        self.seconds.clear()
        self._tile_imbalances.clear()
        self.tokens = 0
        return scalars | router_scalars, record

    def _router_record(self, with_drops: bool) -> tuple[dict, dict]:
        scalars: dict[str, float] = {}
        record: dict = {}
        if self.router:
            for name in ROUTER_SCALARS if with_drops else ROUTER_SCALARS[:2]:
                scalars[name] = round(float(np.mean(self.router[name])), 4)
                record[f"{name}_per_layer"] = [round(value, 4) for value in self.router[name]]
            shares = self.router["expert_share"]
            record["expert_share_per_layer"] = [[round(x, 4) for x in layer] for layer in shares]
        return scalars, record


def append_metrics(output_dir: str | Path, values: dict) -> None:
    """Add a line to ``metrics.jsonl``."""
    with open(Path(output_dir) / METRICS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def add_router_scalars(writers: Iterable, record: dict, step: int) -> None:
    """The routers' statistics layer by layer in VisualDL, for its writers."""
    for writer in writers:
        for name in ROUTER_SCALARS:
            for layer, value in enumerate(record.get(f"{name}_per_layer", [])):
                writer.add_scalar(f"router/{name}/moe_layer_{layer}", value, step)
        for layer, shares in enumerate(record.get("expert_share_per_layer", [])):
            for expert, share in enumerate(shares):
                writer.add_scalar(f"router/expert_share/moe_layer_{layer}/expert_{expert}", share, step)
