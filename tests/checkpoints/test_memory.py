"""Loading and saving take the memory of the model and little more, measured on a checkpoint of half a
gigabyte.

In a process of its own, whose peak is that of nothing else. ``VmHWM`` is read instead of ``ru_maxrss``,
which a new process inherits from the one that started it.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlemix_vl2.checkpoints.files import TensorSpec
from paddlemix_vl2.checkpoints.writer import write_checkpoint
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.hub import CONFIG_FILE
from paddlemix_vl2.models.meta import model_specs

REPOSITORY = Path(__file__).parents[2]
# bfloat16 in the files (0.6 GB), float32 in memory (1.1 GB); the largest tensors are embeddings and head.
SIZES = {"vocab_size": 24_000, "hidden_size": 2048, "intermediate_size": 12_000}
LAYERS = {
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}

SCRIPT = """
import json, re, sys
from pathlib import Path
import paddle
from paddlemix_vl2.checkpoints import load_checkpoint, save_checkpoint
from paddlemix_vl2.checkpoints.specs import TensorLayout
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.models.meta import model_specs


def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


source, copy = sys.argv[1:]
config = DeepseekVLV2Config.from_json(source)
specs = model_specs(config)
model, sizes = paddle.nn.Layer(), {}
with paddle.LazyGuard():
    parameters = {
        name: model.create_parameter(list(spec.shape_in(TensorLayout.PADDLE))) for name, spec in specs.items()
    }
model.state_dict = lambda: parameters

for step, run in (
    ("loading", lambda: load_checkpoint(model, specs, source)),
    ("saving", lambda: save_checkpoint(model, specs, config, copy)),
):
    before = status("VmRSS")
    reset_peak()
    run()
    sizes[step] = status("VmHWM") - before
print(json.dumps(sizes))
"""


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> dict[str, int]:
    """Bytes that loading and saving take at their peaks, and those of the model and its largest tensor."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's account of peak memory")
    source, copy = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("copy")
    values = json.loads((REPOSITORY / "tests" / "golden" / "mha_greedy" / "config.json").read_text())
    values["language_config"] |= SIZES | LAYERS
    values["projector_config"]["n_embed"] = SIZES["hidden_size"]
    specs = [
        TensorSpec(name, spec.shape, "bfloat16")
        for name, spec in model_specs(DeepseekVLV2Config(**values)).items()
    ]
    texts = {CONFIG_FILE: json.dumps(values)}
    write_checkpoint(source, specs, lambda spec: [np.full(spec.shape, 1, np.uint16)], 3e8, texts)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(source), str(copy)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    in_float32 = [2 * spec.nbytes for spec in specs]
    return {"model": sum(in_float32), "largest": max(in_float32), **measured}


@pytest.mark.slow
def test_loading_takes_the_model_and_a_tensor(taken):
    """One tensor being read, and freed blocks of up to another that the C library keeps for reuse
    (``process_tuning.keep_freed_memory``) and that vary from run to run. Mapping the files instead of reading
    them would take half the model more, three times the tensor."""
    assert taken["model"] > 1.1e9
    assert taken["loading"] < taken["model"] + 2 * taken["largest"], taken


@pytest.mark.slow
def test_saving_takes_a_piece_of_a_tensor(taken):
    """A piece has two million values, 8 MB in float32, of which there are a few copies at a time."""
    assert taken["saving"] < 64e6, taken
