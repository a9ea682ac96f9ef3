"""Experts over two and four processes give what one process gives: outputs, gradients, losses, router."""

import numpy as np
import pytest

from paddlemix_vl2.distributed.dispatch import sort_by_expert

pytestmark = pytest.mark.distributed

CASES = ("mla_greedy", "mla_group_limited_yarn", "mla_noaux_tc")
PROCESSES = (2, 4)
# Float32; products have other numbers of rows, and sums over tokens are cut in another way.
RELATIVE = 1e-5


def pairs(found: dict, prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (over processes, alone)."""
    names = [name.removesuffix("/spread") for name in found if name.startswith(prefix)]
    return {
        name: (found[f"{name}/spread"], found[f"{name}/alone"]) for name in names if f"{name}/alone" in found
    }


def check(found: dict, prefix: str, least: int) -> None:
    compared = pairs(found, prefix)
    assert len(compared) >= least, f"{prefix}: only {len(compared)} values were left by the workers"
    for name, (spread, alone) in compared.items():
        assert spread.shape == alone.shape, name
        scale = np.abs(alone).max(initial=0)
        assert np.abs(spread - alone).max(initial=0) <= RELATIVE * scale, name


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("skew", ["even", "one_block", "one_expert_short"])
def test_a_layer(skew, case, processes, results):
    """Outputs and the gradients of input, router, shared and every routed expert."""
    for found in results(processes):
        check(found, f"layer/{case}/{skew}/", least=3 + 1 + 3 + 4 * 3)


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("skew", ["one_block", "one_expert_short"])
def test_the_skews_leave_a_process_with_nothing(skew, case, processes, results):
    """Else the test above would not have met a process whose experts get no token."""
    arrived = [found[f"layer/{case}/{skew}/arrived"] for found in results(processes)]
    assert arrived[0].sum() > 0
    assert arrived[1].sum() == 0


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("balance", ["sequence", "expert"])
def test_a_model(balance, case, processes, results):
    """Losses, the clipped gradient of every parameter and its norm, tokens per expert, and the moved bias."""
    for found in results(processes):
        check(found, f"model/{case}/{balance}/", least=60)
        assert (f"model/{case}/{balance}/bias/spread" in found) == (case == "mla_noaux_tc")
        assert found[f"model/{case}/{balance}/aux_loss/alone"] > 0.1
        # The balance loss alone would not need the experts to be where they are.
        assert found[f"model/{case}/{balance}/norm/alone"] > 1e-3, "nothing was clipped"


@pytest.mark.parametrize("processes", PROCESSES)
def test_each_process_has_its_experts_only(processes, results):
    for rank, found in enumerate(results(processes)):
        names = [name for name in found if name.startswith("model/") and ".mlp.experts." in name]
        experts = {int(name.split(".experts.")[1].split(".")[0]) for name in names}
        assert experts == set(range(4 * (rank % 2), 4 * (rank % 2) + 4))


@pytest.mark.parametrize("processes", PROCESSES)
def test_a_gradient_passes_the_experts_of_processes_without_pictures(processes, results):
    """With recomputation and a frozen language model; other processes have no gradient of their own."""
    check(results(processes)[0], "pictures/", least=1)


@pytest.mark.parametrize("case", CASES)
def test_processes_answer_together_as_one_does(case, results):
    """Bit for bit: each expert sees the same rows, and what the others add is zero."""
    for found in results(2):
        compared = pairs(found, f"answer/{case}/")
        assert len(compared) == 3
        for name, (spread, alone) in compared.items():
            assert np.array_equal(spread, alone), name


def test_rows_of_three_processes_sorted_by_expert():
    """By hand: process 0 sends a row for expert 1; 1 none; 2 two for expert 0 and one for expert 1."""
    assert sort_by_expert(np.array([[0, 1], [0, 0], [2, 1]])).tolist() == [1, 2, 0, 3]
    assert sort_by_expert(np.zeros([2, 3], int)).tolist() == []
