"""The tensors of a model, which must be those of its configuration, and their change of dtype."""

import numpy as np
import paddle

from paddlemix_vl2.checkpoints.files import shorten
from paddlemix_vl2.checkpoints.rules import Layout, shape_in


def model_tensors(model: paddle.nn.Layer, expected: dict[str, tuple[int, ...]]) -> dict[str, paddle.Tensor]:
    """Parameters and persistable buffers by published name, in the order of ``expected``.

    Raises:
        ValueError: the model's tensors are not the expected ones in Paddle's layout: it was built from
            another config, or something was added to it (merge LoRA weights before saving).
    """
    found = model.state_dict()  # the tensors themselves, not copies
    wrong = [f"{name} is not in the model" for name in expected if name not in found]
    wrong += [f"{name} is in the model only" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        wanted, shape = shape_in(Layout.PADDLE, name, expected[name]), tuple(found[name].shape)
        if shape != wanted:
            wrong.append(f"{name} is {list(shape)} in the model, expected {list(wanted)}")
    if wrong:
        raise ValueError(f"model and config differ in {len(wrong)} tensors: {shorten(sorted(wrong))}")
    return {name: found[name] for name in expected}


def cast(value: paddle.Tensor, dtype: str) -> paddle.Tensor:
    """``value`` in ``dtype``, rounded to nearest even; itself where nothing changes."""
    if str(value.dtype) == f"paddle.{dtype}":
        return value
    if dtype == "float16" and value.place.is_cpu_place():
        # Paddle 3.3.1 on the CPU turns float32 magnitudes from 1e-27 to 7e-24 into up to 1.2e-4
        # instead of 0.
        with np.errstate(over="ignore"):  # beyond 65504 becomes infinite, as on a GPU
            return paddle.to_tensor(value.astype("float32").numpy().astype(np.float16))
    return value.astype(dtype)
