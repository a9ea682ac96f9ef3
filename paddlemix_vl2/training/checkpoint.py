"""What a run needs to resume exactly: ``checkpoint-N`` folders.

::

    config.json, *.safetensors, tokenizer and processor files    the model, as every example reads it
    (lora_config.json, peft_model*, in place of the model's      the adapter, where parts train in mode lora)
    optimizer.pdopt, scheduler.pdparams                          moments under the parameters' paths
    (optimizer-00001-of-00002.pdopt, ... in place of the first   where each process has some of the experts)
    rng_state.pdparams                                           generators of Python, numpy and Paddle
    trainer_state.json, run_state.json                           step; geometry, data mixture, sample index

A folder is written under a temporary name and renamed when it is whole, so that a run that is killed while it
saves has its last checkpoint still. Where the experts are spread over processes, each writes what it holds
into the same folder, which must be on a file system that all of them see; the first process renames it.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import paddle
from paddle import distributed, nn
from paddlenlp.trainer.trainer import TRAINER_STATE_NAME

from paddlemix_vl2 import files
from paddlemix_vl2.checkpoints.specs import expert_of
from paddlemix_vl2.distributed import ExpertMesh
from paddlemix_vl2.distributed.collectives import gather_objects, wait_for_all
from paddlemix_vl2.models import adapters
from paddlemix_vl2.processing import DeepseekVLV2Processor

PREFIX = "checkpoint-"
OPTIMIZER_FILE = "optimizer.pdopt"
OPTIMIZER_PART = "optimizer-{number:05d}-of-{count:05d}.pdopt"
SCHEDULER_FILE = "scheduler.pdparams"
RANDOM_FILE = "rng_state.pdparams"
RUN_STATE_FILE = "run_state.json"
_MASTER = "_fp32_master_0"  # what Paddle appends to the name of a 16-bit weight's float32 copy
_ACCUMULATORS = ("_moment1_0", "_moment2_0", "_beta1_pow_acc_0", "_beta2_pow_acc_0")


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint of the highest step in ``output_dir``; None where there is none."""
    whole = [folder for folder in list_checkpoints(output_dir) if (folder / RUN_STATE_FILE).is_file()]
    return whole[-1] if whole else None


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Folders of checkpoints, the newest last."""
    folders = Path(output_dir).glob(f"{PREFIX}*")
    steps = {int(name): folder for folder in folders if (name := folder.name[len(PREFIX) :]).isdigit()}
    return [steps[step] for step in sorted(steps)]


def begin_folder(folder: Path, is_first: bool = True) -> Path:
    """:func:`paddlemix_vl2.files.begin_folder`; the first process makes it for all."""
    temporary = files.begin_folder(folder) if is_first else files.temporary_folder(folder)
    wait_for_all()
    return temporary


def remove_oldest(output_dir: str | Path, keep: int | None) -> None:
    """Delete all but the ``keep`` newest checkpoints; None or 0 keeps all."""
    for folder in list_checkpoints(output_dir)[:-keep] if keep else []:
        shutil.rmtree(folder, ignore_errors=True)


def write_model(
    model: nn.Layer, processor: DeepseekVLV2Processor, folder: Path, mesh: ExpertMesh | None = None
) -> None:
    """The model in the published layout, or its adapters where it has some, and its processor's files. Every
    process calls it; without a mesh all hold the same, and the first one writes."""
    is_first = distributed.get_rank() == 0
    if mesh:
        experts = model.config.language_config.n_routed_experts
        model.save_pretrained(folder, shard_plan=mesh.shard_plan(experts))
    elif is_first and adapters.is_adapted(model):
        adapters.write_adapter(model, folder)
    elif is_first:
        model.save_pretrained(folder)
    if is_first:
        processor.save_pretrained(folder)


def read_model(model: nn.Layer, folder: Path) -> None:
    """Fill the model from the checkpoint, in the dtype of its weights; what is frozen beside adapters is that
    of the base model."""
    if adapters.is_adapted(model):
        adapters.read_adapter(model, folder)
    else:
        model.load_weights(folder)


def write_optimizer(
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    folder: Path,
    mesh: ExpertMesh | None = None,
) -> None:
    """Moments and master weights under the paths of the parameters: Paddle's own names count the layers that
    a process has built, and differ in the next one. Of the processes that hold the same, one writes."""
    count = mesh.degree if mesh else 1
    number = distributed.get_rank()
    if number >= count:
        return
    file = OPTIMIZER_PART.format(number=number + 1, count=count) if mesh else OPTIMIZER_FILE
    state = optimizer_state(model, optimizer)
    if number:
        state = _of_experts(state)  # the first process writes the rest
    paddle.save(state, str(folder / file))


def optimizer_state(model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict:
    """What :func:`write_optimizer` writes: ``"PATH ACCUMULATOR"`` and, where weights have 16 bits,
    ``"master_weights"`` by path."""
    paths = {parameter.name: path for path, parameter in model.named_parameters()}
    state = {}
    for key, value in optimizer.state_dict().items():
        if key == "master_weights":
            state[key] = {paths[name]: tensor for name, tensor in value.items()}
        elif key != "LR_Scheduler":
            name, accumulator = _split_key(key)
            # Of 16-bit weights, the moments are those of the float32 copy.
            state[f"{paths[name.removesuffix(_MASTER)]} {accumulator}"] = value
    return state


def _of_experts(state: dict) -> dict:
    """What belongs to routed experts."""
    chosen = {key: value for key, value in state.items() if expert_of(key) is not None}
    masters = state.get("master_weights")
    if masters:
        chosen["master_weights"] = {
            path: value for path, value in masters.items() if expert_of(path) is not None
        }
    return chosen


def read_optimizer(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, folder: Path) -> None:
    """The counterpart of :func:`write_optimizer`: what belongs to parameters of this process, from the files
    of all processes that have written, one after the other."""
    names = {path: parameter.name for path, parameter in model.named_parameters()}
    state, masters = {}, {}
    for file in sorted(folder.glob("optimizer*.pdopt")):
        saved = paddle.load(str(file))
        found = {path: value for path, value in saved.pop("master_weights", {}).items() if path in names}
        for path, tensor in found.items():
            tensor.name = names[path] + _MASTER
            masters[names[path]] = tensor
        for key, value in saved.items():
            path, accumulator = key.split(" ")
            if path in names:
                value.name = names[path] + (_MASTER if path in found else "") + accumulator
                state[value.name] = value
    optimizer.set_state_dict({**state, **({"master_weights": masters} if masters else {})})


def _split_key(key: str) -> tuple[str, str]:
    for accumulator in _ACCUMULATORS:
        if key.endswith(accumulator):
            return key.removesuffix(accumulator), accumulator
    raise AssertionError(f"the optimizer keeps {key}, which no checkpoint knows")


def random_state() -> dict:
    """States of the random generators of this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "paddle": [generator.get_state() for generator in _generators()],
    }


def write_random_states(folder: Path, states: list[dict]) -> None:
    """:func:`random_state` of every process, in the order of their ranks."""
    paddle.save({"processes": states}, str(folder / RANDOM_FILE))


def read_random_state(folder: Path, rank: int) -> None:
    """Give this process's generators their saved states; a run of fewer processes has none for it, and then
    they are left as they are."""
    states = paddle.load(str(folder / RANDOM_FILE), return_numpy=True)["processes"]
    if rank >= len(states):
        return
    random.setstate(states[rank]["python"])
    np.random.set_state(states[rank]["numpy"])
    for generator, saved in zip(_generators(), states[rank]["paddle"], strict=True):
        generator.set_state(saved)


def _generators() -> list:
    core = paddle.framework.core
    generators = [core.default_cpu_generator()]
    if core.is_compiled_with_cuda():
        generators += [core.default_cuda_generator(index) for index in range(core.get_cuda_device_count())]
    return generators


def write_run_state(folder: Path, **state) -> None:
    """What is compared or continued on resuming; plain values. Written last: a folder with it is whole."""
    files.write_object(folder / RUN_STATE_FILE, state)


def read_run_state(folder: Path) -> dict:
    """The counterpart of :func:`write_run_state`.

    Raises:
        FileNotFoundError: the folder is no checkpoint of a run.
    """
    if not (folder / RUN_STATE_FILE).is_file():
        raise FileNotFoundError(f"{folder}: no {RUN_STATE_FILE}; this is no checkpoint of a training run")
    return files.read_object(folder / RUN_STATE_FILE)


def read_step(folder: Path) -> int:
    """Optimizer steps before the checkpoint."""
    return files.read_object(folder / TRAINER_STATE_NAME)["global_step"]


def check_geometry(old: dict, new: dict, folder: Path) -> None:
    """ValueError with the first key in which the checkpoint's model differs from this one; both from
    :func:`geometry`."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"{folder}: cannot resume: {key} was {old.get(key)!r} in that run and is {new.get(key)!r} now"
            )


def geometry(model: nn.Layer) -> dict[str, list[int | str]]:
    """Shape and, where it trains, a mark, of every parameter in any process:
    ``{"path": [..., "trained"]}``. Every process calls it."""
    own = {
        path: [*parameter.shape, "frozen" if parameter.stop_gradient else "trained"]
        for path, parameter in model.named_parameters()
    }
    return {path: shape for held in gather_objects(own) for path, shape in held.items()}
