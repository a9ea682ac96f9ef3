"""Plans for clusters against sums written out by hand, and against what the paper says of its own."""

import math

import pytest

from paddlemix_vl2.planning import flops as costs
from paddlemix_vl2.planning import training_memory as memory
from paddlemix_vl2.planning.cluster import (
    PAPER_RUNS,
    Cluster,
    compare_with_paper,
    most_tiles,
    plan_cluster,
    step_flops,
)
from paddlemix_vl2.planning.parameters import CONFIGS, find_config, plan_parameters
from paddlemix_vl2.training.recipe import load_recipe

# Routed experts of VL2-Small: 26 layers of 64, three matrices of 2048 x 1408.
SMALL_ROUTED = 26 * 64 * 3 * 2048 * 1408


def recipe(model="small", stage="stage2_pretrain", *changes):
    return load_recipe(CONFIGS / "train" / f"{model}_{stage}.yaml", list(changes))


@pytest.fixture(scope="module")
def small():
    arguments = recipe()
    config, _ = find_config(arguments)
    return arguments, config, plan_parameters(config, arguments)


def test_states_divided_by_hand(small):
    *_, parameters = small
    trained = sum(parameter.trained for parameter in parameters.values())
    unused = sum(parameter.size for parameter in parameters.values()) - trained  # the pooling head
    rest = trained - SMALL_ROUTED
    states = memory.divided_state_bytes(parameters, True, 8)
    held = SMALL_ROUTED / 8 + rest
    assert states == {
        "weights": 2 * (held + unused),
        "gradients": 2 * held,
        "AdamW moments": 8 * held,
        "master weights": 4 * held,
    }


def test_one_device_keeps_what_a_process_keeps(small):
    *_, parameters = small
    alone = memory.state_bytes(parameters.values(), True)
    assert memory.divided_state_bytes(parameters, True, 1) == alone


def test_traffic_and_time_by_hand(small):
    """Four nodes, experts over the eight devices of a node; 72 rows of 4096 tokens per device."""
    arguments, config, parameters = small
    plan = plan_cluster(arguments, Cluster(nodes=4), 8, rows=2304)
    assert (plan.rows, plan.accumulation, plan.steps) == (2304, 72, 85714)
    # 26 MoE layers, six experts per token, 2048 values of two bytes. Seven of eight go elsewhere; there
    # and back, forward, forward again and backward.
    assert plan.exchange_bytes == pytest.approx(72 * 4096 * 26 * 6 * 2048 * 2 * 7 / 8 * 6)
    gradients = memory.divided_state_bytes(parameters, True, 8)["gradients"]
    assert plan.gradient_bytes == 2 * gradients
    assert plan.traffic_seconds == pytest.approx(plan.exchange_bytes / 300e9 + plan.gradient_bytes / 25e9)
    row = costs.training_row_flops(config, 4096, 1)
    flops = 2304 * 3 * (row["language"] + plan.tiles * row["vision"])
    assert sum(plan.flops.values()) == pytest.approx(flops)
    assert plan.compute_seconds == pytest.approx(flops / (32 * 312e12 * 0.28))
    assert plan.days == pytest.approx(85714 * plan.compute_seconds / 86400)
    assert plan.memory["activations with recompute"] == memory.activation_bytes(config, arguments, True, True)


def test_experts_over_several_nodes_use_the_network(small):
    arguments = small[0]
    plan = plan_cluster(arguments, Cluster(nodes=4), 32, rows=2304)
    # Of the 31 other holders seven are in the node; experts are held once, so their gradients stay.
    seconds = plan.exchange_bytes * (7 / 31 / 300e9 + 24 / 31 / 25e9) + plan.gradient_bytes / 25e9
    assert plan.traffic_seconds == pytest.approx(seconds)
    trained = sum(p.trained for name, p in small[2].items() if not memory.is_routed(name))
    assert plan.gradient_bytes == 2 * 2 * trained


def test_a_slow_network_is_the_time():
    cluster = Cluster(nodes=4, network_bandwidth=1e6)
    plan = plan_cluster(recipe(), cluster, 8, rows=2304)
    assert plan.step_seconds == plan.traffic_seconds > plan.compute_seconds


def test_a_single_device_sends_nothing():
    plan = plan_cluster(recipe(), Cluster(devices_per_node=1), 1, rows=8)
    assert plan.exchange_bytes == plan.gradient_bytes == plan.traffic_seconds == 0


def test_what_does_not_train_takes_fewer_passes():
    """Stage 1: gradients pass the frozen language model; adapters alone need none below them."""
    config, _ = find_config(recipe())
    row = costs.training_row_flops(config, 4096, 1)

    def passes(*changes):
        flops = step_flops(config, recipe("small", "stage2_pretrain", *changes), 1, 1)
        return flops["vision"] / row["vision"], flops["language"] / row["language"]

    frozen = "{mode: frozen}"
    assert passes() == (3, 3)
    assert passes(f"language={frozen}") == (3, 2)
    assert passes(f"vision={frozen}") == (1, 3)
    assert passes(f"vision={frozen}", f"language={frozen}") == (1, 2)
    assert passes(f"vision={frozen}", f"projector={frozen}", "language={mode: lora}") == (1, 2)


def test_the_most_tiles_of_a_row(small):
    """4096 tokens hold 20 tiles of 196; three in ten rows of stage 2 are text."""
    arguments, config, _ = small
    assert most_tiles(config, arguments) == pytest.approx(0.7 * 20)
    assert most_tiles(config, recipe("small", "stage3_finetune")) == 20


@pytest.mark.parametrize(
    ("cluster", "division", "rows", "message"),
    [
        (Cluster(1), 16, 2304, "8 devices are no multiple of expert_parallel_degree 16"),
        (Cluster(3), 24, 2304, "24 devices cannot share 64 routed experts evenly"),
        (
            Cluster(33),
            1,
            2304,
            "2304 rows per step are no multiple of 1 per device x 264 devices",
        ),
    ],
)
def test_what_cannot_be_divided(cluster, division, rows, message):
    with pytest.raises(ValueError, match=message):
        plan_cluster(recipe(), cluster, division, rows)


# ---- the paper ----


@pytest.mark.parametrize("model", PAPER_RUNS)
def test_the_papers_days_within_a_factor(model):
    """7, 10 and 14 days at one utilisation for all three: the arithmetic is within a factor of 1.4. It counts
    the most tiles that rows can have, which weighs most for Tiny, where they are most of the work. Whatever
    the number of tiles is, the utilisation that the paper's days imply is a possible one."""
    comparison = compare_with_paper(model)
    assert 1 / 1.4 < comparison.days / comparison.run.days < 1.4
    assert 0.1 < comparison.least_utilisation < comparison.utilisation < 0.5


def test_the_default_utilisation_is_what_the_papers_days_imply():
    implied = [compare_with_paper(model).utilisation for model in PAPER_RUNS]
    assert Cluster().utilisation == round(math.prod(implied) ** (1 / 3), 2)


def test_the_papers_tokens_are_those_of_the_stages():
    """Without tiles VL2 takes six operations per active parameter (but for the embedding) and token of stages
    2 and 3, and a tenth more for attention."""
    comparison = compare_with_paper("base")
    without = comparison.least_utilisation / comparison.utilisation * comparison.flops
    config = find_config(recipe("base"))[0].language_config
    active = costs.layer_weights_per_token(config) + config.vocab_size * config.hidden_size
    assert 4.0e9 < active < 4.3e9
    assert 1.05 < without / (6 * active * (796.5e9 + 19.5e9)) < 1.2
