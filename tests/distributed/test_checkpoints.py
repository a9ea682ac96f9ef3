"""A checkpoint that several processes write together is the published one, for any number of readers."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlemix_vl2.checkpoints.reader import open_checkpoint
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM

GOLDEN = Path(__file__).parents[1] / "golden" / "mla_noaux_tc"


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 4])
def test_saving_by_several_is_bit_identical(processes, folders):
    """Tensor by tensor, and in the shards the same writer's only."""
    stored, original = open_checkpoint(folders(processes) / "saved"), load_file(GOLDEN / "model.safetensors")
    assert stored.tensors.keys() == original.keys()
    for name, tensor in stored.tensors.items():
        assert np.array_equal(tensor.read(), original[name]), name
    writers = {}
    for name, tensor in stored.tensors.items():
        block = int(name.split(".experts.")[1].split(".")[0]) // 4 if ".mlp.experts." in name else 0
        writers.setdefault(tensor.file, set()).add(block)
    assert len(writers) > 4 and all(len(blocks) == 1 for blocks in writers.values())
    assert not list((folders(processes) / "saved").glob("*.tmp"))


@pytest.mark.distributed
def test_one_process_reads_what_two_have_saved(folders):
    model = DeepseekVLV2ForCausalLM.from_pretrained(folders(2) / "saved", "float32", backend="paddle")
    original = DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN, "float32", backend="paddle")
    for (name, one), (_, other) in zip(model.named_parameters(), original.named_parameters(), strict=True):
        assert np.array_equal(one.numpy(), other.numpy()), name


@pytest.mark.distributed
def test_four_processes_read_what_two_have_saved(results):
    """With a degree of four: two experts each, bit for bit."""
    original = dict(DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN, "float32").named_parameters())
    seen = set()
    for rank, found in enumerate(results(4)):
        read = {
            name.removeprefix("read/"): value for name, value in found.items() if name.startswith("read/")
        }
        experts = {int(name.split(".experts.")[1].split(".")[0]) for name in read if ".mlp.experts." in name}
        assert experts == {2 * rank, 2 * rank + 1}
        for name, value in read.items():
            assert np.array_equal(value, original[name].numpy()), name
        seen |= read.keys()
    assert seen == original.keys()
