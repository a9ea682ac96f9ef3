"""The values of a log line, by hand, and what is written for each."""

import json

import pytest

from paddlemix_vl2.files import METRICS_FILE
from paddlemix_vl2.training.metrics import (
    StepMetrics,
    add_router_scalars,
    append_metrics,
)

ROUTER = {
    "max_vio": [1.0, 3.0],
    "entropy": [0.123456, 0.5],
    "dropped_share": [0.0, 0.25],
    "expert_share": [[0.25, 0.75], [0.333333, 0.666667]],
}


@pytest.fixture
def metrics() -> StepMetrics:
    metrics = StepMetrics()
    metrics.seconds.update(data=1.0, forward=3.0)
    metrics.seconds["forward"] += 4.0
    metrics.tokens, metrics.learning_rate = 400, 0.01
    return metrics


def test_rates_and_shares(metrics):
    scalars, record = metrics.take(world_size=2, with_drops=False)
    assert scalars == {
        "learning_rate": 0.01,
        "tokens_per_second": 400 * 2 / 8,
        "share_data": 0.125,
        "share_forward": 0.875,
    }
    assert record == {"seconds": {"data": 1.0, "forward": 7.0}}


def test_what_is_there_now_and_then(metrics):
    metrics.gradient_norm, metrics.num_broken = 1.23456, 3
    metrics.add_tile_imbalance(None)
    metrics.add_tile_imbalance((1.5, 1.0))
    metrics.add_tile_imbalance((2.5, 1.25))
    scalars, _ = metrics.take(1, False)
    assert (scalars["grad_norm"], scalars["broken_samples"]) == (1.2346, 3)
    assert (scalars["tile_imbalance_before"], scalars["tile_imbalance"]) == (2.0, 1.125)


@pytest.mark.parametrize("with_drops", [False, True])
def test_the_routers(with_drops, metrics):
    """Means over the layers in the line, the layers in the record; drops only of a run that drops."""
    metrics.router = ROUTER
    scalars, record = metrics.take(1, with_drops)
    assert (scalars["max_vio"], scalars["entropy"]) == (2.0, pytest.approx(0.3117))
    assert record["max_vio_per_layer"] == [1.0, 3.0] and record["entropy_per_layer"] == [0.1235, 0.5]
    assert record["expert_share_per_layer"] == [[0.25, 0.75], [0.3333, 0.6667]]
    assert ("dropped_share" in scalars) == ("dropped_share_per_layer" in record) == with_drops
    if with_drops:
        assert scalars["dropped_share"] == 0.125


def test_taking_begins_anew(metrics):
    """What was summed does; what is of the last step, and the broken samples of the run, stay."""
    metrics.num_broken, metrics.router = 2, ROUTER
    metrics.add_tile_imbalance((1.5, 1.0))
    metrics.take(1, False)
    scalars, record = metrics.take(1, False)
    assert scalars["tokens_per_second"] == 0 and record["seconds"] == {}
    assert "tile_imbalance" not in scalars
    assert scalars["broken_samples"] == 2 and scalars["max_vio"] == 2.0


def test_lines_are_appended(tmp_path):
    append_metrics(tmp_path, {"loss": 1.5, "global_step": 1})
    append_metrics(tmp_path, {"loss": 1.25, "global_step": 2})
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"loss": 1.5, "global_step": 1},
        {"loss": 1.25, "global_step": 2},
    ]


def test_visualdl_gets_layer_by_layer(metrics):
    class Writer:
        def __init__(self):
            self.found = {}

        def add_scalar(self, tag, value, step):
            self.found[tag] = value, step

    metrics.router, writers = ROUTER, [Writer(), Writer()]
    _, record = metrics.take(1, with_drops=True)
    add_router_scalars(writers, record, 7)
    assert writers[0].found == writers[1].found
    assert writers[0].found == {
        "router/max_vio/moe_layer_0": (1.0, 7),
        "router/max_vio/moe_layer_1": (3.0, 7),
        "router/entropy/moe_layer_0": (0.1235, 7),
        "router/entropy/moe_layer_1": (0.5, 7),
        "router/dropped_share/moe_layer_0": (0.0, 7),
        "router/dropped_share/moe_layer_1": (0.25, 7),
        "router/expert_share/moe_layer_0/expert_0": (0.25, 7),
        "router/expert_share/moe_layer_0/expert_1": (0.75, 7),
        "router/expert_share/moe_layer_1/expert_0": (0.3333, 7),
        "router/expert_share/moe_layer_1/expert_1": (0.6667, 7),
    }
