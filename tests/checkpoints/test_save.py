"""What is saved is the published layout, loads back bit for bit, and replaces an older checkpoint whole."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from paddlemix_vl2.checkpoints import load_checkpoint, save, save_checkpoint, writer
from paddlemix_vl2.checkpoints.files import TensorSpec
from paddlemix_vl2.checkpoints.reader import open_checkpoint
from paddlemix_vl2.checkpoints.specs import expert_of
from paddlemix_vl2.checkpoints.writer import ShardPlan, plan_shards, write_checkpoint
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BIAS = "e_score_correction_bias"
SINGLE = {"model.safetensors", "config.json"}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def loaded(build_model):
    """case, dtype -> a model with its weights."""

    def load(case, dtype: str = "float32"):
        model = build_model(case)
        load_checkpoint(model, case.specs, case.folder, dtype=dtype)
        return model

    return load


@pytest.fixture(autouse=True)
def synced(monkeypatch) -> list[int]:
    """Files handed to the disk; not waiting for the disk makes these tests many times as fast."""
    handed_over = []
    monkeypatch.setattr(writer.os, "fsync", handed_over.append)
    return handed_over


def save_case(model, case, folder, **settings) -> None:
    save_checkpoint(model, case.specs, case.config, folder, **settings)


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read_folder(folder) -> dict[str, np.ndarray]:
    """All tensors, by the safetensors library."""
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        found = load_file(file)
        assert not weights.keys() & found.keys()
        weights.update(found)
    return weights


@pytest.mark.parametrize("max_shard_bytes", [5e9, 100_000])
def test_saved_float32_is_the_golden_file_again(case, max_shard_bytes, loaded, tmp_path, assert_same):
    save_case(loaded(case), case, tmp_path, max_shard_bytes=max_shard_bytes)
    assert_same(read_folder(tmp_path), case.weights)


@pytest.mark.parametrize("max_shard_bytes", [5e9, 100_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_save_then_load_is_bit_identical(
    case, dtype, max_shard_bytes, loaded, build_model, tensors_of, tmp_path, assert_same
):
    model = loaded(case, dtype)
    save_case(model, case, tmp_path, max_shard_bytes=max_shard_bytes)
    again = build_model(case)
    load_checkpoint(again, case.specs, tmp_path, dtype=dtype)
    assert_same(tensors_of(again), tensors_of(model))


@pytest.mark.parametrize(("dtype", "code"), DTYPES.items())
def test_names_shapes_and_dtypes_are_the_published_ones(case, dtype, code, loaded, tmp_path):
    save_case(loaded(case), case, tmp_path, dtype=dtype)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        shapes = {name: tuple(view.get_shape()) for name, view in slices.items()}
        codes = {name: view.get_dtype() for name, view in slices.items()}
    assert shapes == {name: spec.shape for name, spec in case.specs.items()}
    assert codes == {name: "F32" if name.endswith(BIAS) else code for name in shapes}


def test_saving_in_another_dtype_rounds_once(biased_case, loaded, tmp_path, converted, assert_same):
    save_case(loaded(biased_case), biased_case, tmp_path, dtype="bfloat16")
    wanted = {
        name: converted(array, "float32" if name.endswith(BIAS) else "bfloat16")
        for name, array in biased_case.weights.items()
    }
    assert_same(read_folder(tmp_path), wanted)


def test_config_is_saved_with_the_dtype_of_the_files(biased_case, loaded, tmp_path):
    save_case(loaded(biased_case), biased_case, tmp_path, dtype="bfloat16")
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["torch_dtype"] == values["language_config"]["torch_dtype"] == "bfloat16"
    again = DeepseekVLV2Config.from_json(tmp_path).to_dict()
    for part in (again, again["language_config"]):  # the parts that have one in the golden file
        part["torch_dtype"] = "float32"
    assert again == biased_case.config.to_dict()


@pytest.mark.parametrize("piece_values", [1, 1000, 1 << 30])
def test_size_of_pieces_does_not_matter(
    biased_case, piece_values, loaded, tmp_path, monkeypatch, assert_same
):
    monkeypatch.setattr(save, "_PIECE_VALUES", piece_values)
    save_case(loaded(biased_case), biased_case, tmp_path)
    assert_same(read_folder(tmp_path), biased_case.weights)


def test_shards_and_index(biased_case, loaded, tmp_path, synced):
    save_case(loaded(biased_case), biased_case, tmp_path, max_shard_bytes=200_000)
    index = json.loads((tmp_path / INDEX).read_text())
    count = len(set(index["weight_map"].values()))
    assert count >= 4
    assert len(synced) == count
    files = {f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)}
    assert set(index["weight_map"].values()) == files
    assert names_in(tmp_path) == files | {INDEX, "config.json"}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in biased_case.weights.values())
    for file in files:
        in_file = load_file(tmp_path / file)
        assert sum(array.nbytes for array in in_file.values()) <= 200_000
        assert in_file.keys() == {name for name, shard in index["weight_map"].items() if shard == file}


def test_plan_shards():
    specs = [
        TensorSpec(name, (size,), "float16") for name, size in zip("abcde", (3, 3, 8, 1, 2), strict=True)
    ]

    def plan(limit: float) -> list[str]:
        return ["".join(spec.name for spec in shard) for shard in plan_shards(specs, limit).values()]

    assert plan(12) == ["ab", "c", "de"]
    assert plan(34) == ["abcde"]
    assert plan(33) == ["abcd", "e"]
    assert plan(1) == ["a", "b", "c", "d", "e"]
    assert list(plan_shards(specs, 34)) == ["model.safetensors"]
    assert list(plan_shards(specs, 33))[1] == "model-00002-of-00002.safetensors"


def test_values_are_aligned(tmp_path):
    """A float32 tensor behind an odd number of bfloat16 values still begins at a multiple of 4."""
    specs = [TensorSpec("a", (3,), "bfloat16"), TensorSpec("b", (2,), "float32")]
    arrays = {"a": np.array([1, 2, 3], np.uint16), "b": np.array([1.5, 2.5], np.float32)}
    write_checkpoint(tmp_path, specs, lambda spec: [arrays[spec.name]], 1e9, {})
    assert read_folder(tmp_path)["b"].tolist() == [1.5, 2.5]
    assert [tensor.offset % 4 for tensor in open_checkpoint(tmp_path).tensors.values()] == [0, 0]


@pytest.mark.parametrize("sizes", [(5e9, 5e9), (5e9, 1e5), (1e5, 5e9), (1e5, 2e5), (2e5, 1e5), (1e5, 1e5)])
def test_saving_over_an_older_checkpoint(sizes, biased_case, plain_case, loaded, tmp_path, assert_same):
    """Whatever the numbers of shards, nothing of the older one stays, and other files do."""
    (tmp_path / "tokenizer.json").write_text("kept")
    save_case(loaded(plain_case), plain_case, tmp_path, max_shard_bytes=sizes[0])
    save_case(loaded(biased_case), biased_case, tmp_path, max_shard_bytes=sizes[1])
    assert_same(read_folder(tmp_path), biased_case.weights)
    open_checkpoint(tmp_path)
    assert (INDEX in names_in(tmp_path)) == (sizes[1] < 5e9)
    assert (tmp_path / "tokenizer.json").read_text() == "kept"
    assert not [name for name in names_in(tmp_path) if name.endswith(".tmp")]


def test_leftovers_of_a_killed_process_are_removed(biased_case, loaded, tmp_path):
    for name in ("model.safetensors.tmp", "model-00001-of-00009.safetensors.tmp", "notes.tmp"):
        (tmp_path / name).touch()
    save_case(loaded(biased_case), biased_case, tmp_path)
    assert names_in(tmp_path) == SINGLE | {"notes.tmp"}


def test_published_shards_are_replaced_too(biased_case, loaded, tmp_path):
    """They count to six digits."""
    stale = tmp_path / "model-00001-of-000002.safetensors"
    stale.write_bytes(b"of an older download")
    save_case(loaded(biased_case), biased_case, tmp_path)
    assert names_in(tmp_path) == SINGLE


@pytest.mark.parametrize("sizes", [(5e9, 5e9), (5e9, 1e5), (1e5, 1e5), (1e5, 2e5)])
def test_failure_while_writing_leaves_the_older_checkpoint(
    sizes, biased_case, plain_case, loaded, tmp_path, monkeypatch, assert_same
):
    save_case(loaded(plain_case), plain_case, tmp_path, max_shard_bytes=sizes[0])
    before = names_in(tmp_path)
    published_pieces = save.published_pieces

    def failing(stored, spec, tensor):
        if stored.name == "language.lm_head.weight":  # the last one
            raise OSError("no space left on device")
        return published_pieces(stored, spec, tensor)

    monkeypatch.setattr(save, "published_pieces", failing)
    with pytest.raises(OSError, match="no space left"):
        save_case(loaded(biased_case), biased_case, tmp_path, max_shard_bytes=sizes[1])
    assert names_in(tmp_path) == before
    assert_same(read_folder(tmp_path), plain_case.weights)


@pytest.mark.parametrize("sizes", [(5e9, 5e9), (5e9, 2e5), (2e5, 5e9), (2e5, 2e5), (2e5, 3e5)])
def test_interruption_between_renames_never_mixes(
    sizes, biased_case, loaded, build_model, tmp_path, monkeypatch, tensors_of
):
    """Stopped before any of the renames, the folder holds the old weights, the new ones, or is refused."""
    old, new = loaded(biased_case), loaded(biased_case)
    for tensor in new.state_dict().values():
        tensor.set_value(tensor + 1)
    wanted = [fingerprint(tensors_of(model)) for model in (old, new)]
    outcomes = []
    for allowed in range(12):
        folder = tmp_path / str(allowed)
        save_case(old, biased_case, folder, max_shard_bytes=sizes[0])
        with monkeypatch.context() as patch:
            patch.setattr(writer.os, "replace", stop_after(allowed))
            finished = interrupted_save(new, biased_case, folder, sizes[1])
        outcomes.append(outcome(folder, biased_case, build_model, tensors_of, wanted))
        if finished:
            break
    assert finished and outcomes[-1] == "new"
    assert outcomes[0] in ("old", "refused")
    assert outcomes == sorted(outcomes, key=["old", "refused", "new"].index)


def stop_after(allowed: int):
    replace, calls = os.replace, []

    def counted(source, target):
        calls.append(target)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        replace(source, target)

    return counted


def interrupted_save(model, case, folder, max_shard_bytes) -> bool:
    try:
        save_case(model, case, folder, max_shard_bytes=max_shard_bytes)
    except KeyboardInterrupt:
        return False
    return True


def fingerprint(tensors: dict[str, np.ndarray]) -> bytes:
    return b"".join(tensors[name].tobytes() for name in sorted(tensors))


def outcome(folder, case, build_model, tensors_of, wanted) -> str:
    model = build_model(case)
    try:
        load_checkpoint(model, case.specs, folder)
    except (ValueError, FileNotFoundError):
        return "refused"
    return ("old", "new")[wanted.index(fingerprint(tensors_of(model)))]


BLOCK = 4  # experts of a process; the golden models have 8


def writer_of(name: str) -> int:
    expert = expert_of(name)
    return 0 if expert is None else expert // BLOCK


@pytest.fixture
def parts(loaded, biased_case):
    """Two models that hold half of the experts each."""

    def part(index: int):
        model, experts = loaded(biased_case), range(index * BLOCK, (index + 1) * BLOCK)
        for layer in model.language.model.layers._sub_layers.values():
            held = layer.mlp._sub_layers["experts"]._sub_layers if "experts" in layer.mlp._sub_layers else {}
            for name in [name for name in held if int(name) not in experts]:
                del held[name]
        return model

    return [part(0), part(1)]


def save_together(parts, case, folder, wait) -> list:
    """Both at once, in threads: what each raised, or None."""

    def save_part(index: int):
        plan = ShardPlan(index, writer_of, wait)
        try:
            save_case(parts[index], case, folder, max_shard_bytes=1e5, shard_plan=plan)
        except threading.BrokenBarrierError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(save_part, [0, 1]))


def test_two_write_one_checkpoint(parts, biased_case, tmp_path, assert_same):
    barrier = threading.Barrier(2, timeout=60)
    assert save_together(parts, biased_case, tmp_path, barrier.wait) == [None, None]
    assert_same(read_folder(tmp_path), biased_case.weights)
    for file in tmp_path.glob("*.safetensors"):
        assert len({writer_of(name) for name in load_file(file)}) == 1, f"{file.name} has two writers"
    assert open_checkpoint(tmp_path).tensors.keys() == biased_case.weights.keys()


@pytest.mark.parametrize("lost_at", [1, 2])
def test_a_lost_writer_leaves_the_older_checkpoint(
    lost_at, parts, plain_case, biased_case, loaded, tmp_path, assert_same
):
    """The other one never comes to where both wait, before or after it has written."""
    save_case(loaded(plain_case), plain_case, tmp_path)
    calls, barrier = [], threading.Barrier(2, timeout=60)

    def wait():
        calls.append(1)
        if len(calls) > 2 * (lost_at - 1):
            barrier.abort()
        barrier.wait()

    errors = save_together(parts, biased_case, tmp_path, wait)
    assert all(isinstance(error, threading.BrokenBarrierError) for error in errors)
    assert_same(read_folder(tmp_path), plain_case.weights)


def test_experts_that_are_elsewhere_are_not_saved_silently(parts, biased_case, tmp_path):
    with pytest.raises(ValueError, match=r"experts\.0\..* is not in the model"):
        save_case(parts[1], biased_case, tmp_path)


def test_full_disk_is_noticed_before_writing(biased_case, loaded, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"0\.0 GB are needed, the disk has 0\.0 GB free"):
        save_case(loaded(biased_case), biased_case, tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown; use float32, bfloat16, float16"),
        ({"max_shard_bytes": 0}, "the shard size must be positive, not 0"),
    ],
)
def test_bad_arguments(arguments, message, biased_case, loaded, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_case(loaded(biased_case), biased_case, tmp_path / "new", **arguments)
    assert names_in(tmp_path) == set()


def test_gradients_are_not_recorded(biased_case, loaded, tmp_path):
    model = loaded(biased_case)
    assert not all(parameter.stop_gradient for parameter in model.parameters())
    stored = TensorSpec("projector.layers.0.weight", (48, 96), "bfloat16")
    pieces = list(
        save.published_pieces(stored, biased_case.specs[stored.name], model.state_dict()[stored.name])
    )
    assert pieces[0].dtype == np.uint16 and pieces[0].shape == (48, 96)
