"""Golden checkpoints as numpy arrays, and a model made of their names only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import load_file, save_file

from paddlemix_vl2.checkpoints import ParameterSpec
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.models.meta import model_specs

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("mha_greedy", "mla_greedy", "mla_noaux_tc", "mla_group_limited_yarn", "mla_noaux_tc_groups")
NUMPY_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@dataclass(frozen=True)
class Case:
    """One golden checkpoint, read with the safetensors library: weights as published, [out, in]."""

    folder: Path
    config: DeepseekVLV2Config
    weights: dict[str, np.ndarray]

    @property
    def specs(self) -> dict[str, ParameterSpec]:
        """Of all tensors of the config."""
        return model_specs(self.config)


def load_case(name: str) -> Case:
    folder = GOLDEN / name
    return Case(folder, DeepseekVLV2Config.from_json(folder), load_file(folder / "model.safetensors"))


@pytest.fixture(params=CASES)
def case(request) -> Case:
    """Every golden checkpoint in turn."""
    return load_case(request.param)


@pytest.fixture
def biased_case() -> Case:
    """The golden checkpoint like VL2 (27B), with ``e_score_correction_bias``."""
    return load_case("mla_noaux_tc")


@pytest.fixture
def plain_case() -> Case:
    """The golden checkpoint like VL2-Tiny, with multi-head attention and no ``e_score_correction_bias``."""
    return load_case("mha_greedy")


def is_transposed(name: str, array: np.ndarray) -> bool:
    """Written apart from the specs on purpose: matrices, except the table of embeddings and the router's."""
    return array.ndim == 2 and not name.endswith(("embed_tokens.weight", "mlp.gate.weight"))


@pytest.fixture
def to_paddle() -> Callable:
    """name, published array -> the array in Paddle's layout."""
    return lambda name, array: np.ascontiguousarray(array.T) if is_transposed(name, array) else array


class NamedTensors(nn.Layer):
    """A tree of layers with a parameter (or persistable buffer) for every name; it computes nothing."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], buffers: tuple[str, ...] = ()):
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split(".")
            layer = self
            for part in path:
                if part not in layer._sub_layers:
                    layer.add_sublayer(part, nn.Layer())
                layer = layer._sub_layers[part]
            if name.endswith(buffers):
                layer.register_buffer(leaf, paddle.zeros(shape))
            else:
                layer.add_parameter(leaf, layer.create_parameter(list(shape)))


@pytest.fixture
def build_model() -> Callable:
    """case -> a model with its tensors in Paddle's layout, without memory for parameters."""

    def build(case: Case, buffers: tuple[str, ...] = ()) -> nn.Layer:
        shapes = {
            name: case.weights[name].shape[::-1]
            if is_transposed(name, case.weights[name])
            else case.weights[name].shape
            for name in case.specs
        }
        with paddle.LazyGuard():
            return NamedTensors(shapes, buffers or ("no such name",))

    return build


@pytest.fixture
def write_folder(tmp_path) -> Callable:
    """weights -> a folder with one file of them, written by the safetensors library."""

    def write(weights: dict[str, np.ndarray], metadata: dict | None = None, name: str = "written") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(
            {key: np.ascontiguousarray(array) for key, array in weights.items()},
            folder / "model.safetensors",
            metadata,
        )
        return folder

    return write


def as_numpy(tensor: paddle.Tensor) -> np.ndarray:
    """The values with their own dtype; Paddle gives bfloat16 as uint16."""
    array = tensor.numpy()
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array


@pytest.fixture
def tensors_of() -> Callable:
    """model -> name: values, parameters and persistable buffers."""

    def collect(model: nn.Layer) -> dict[str, np.ndarray]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: as_numpy(tensor) for name, tensor in named}

    return collect


@pytest.fixture
def converted() -> Callable:
    """array, dtype name -> the array in that dtype, by numpy and ml_dtypes."""

    def convert(array: np.ndarray, dtype: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            return array.astype(np.float32).astype(NUMPY_DTYPES[dtype])

    return convert


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.fixture
def assert_same() -> Callable:
    """Two dictionaries of arrays: the same names, dtypes, shapes and bits."""

    def check(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
        assert left.keys() == right.keys()
        assert [name for name in left if not same_bits(left[name], right[name])] == []

    return check
