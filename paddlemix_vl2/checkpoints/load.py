"""Load a checkpoint into a model, one tensor at a time."""

from collections.abc import Callable
from pathlib import Path

import paddle

from paddlemix_vl2.checkpoints.comparison import detect_layout, find_differences
from paddlemix_vl2.checkpoints.files import byte_bar, check_dtype
from paddlemix_vl2.checkpoints.reader import StoredTensor, open_checkpoint
from paddlemix_vl2.checkpoints.specs import ParameterSpec, TensorLayout, cast, model_tensors


def load_checkpoint(
    model: paddle.nn.Layer,
    specs: dict[str, ParameterSpec],
    folder: str | Path,
    dtype: str = "float32",
    progress: bool = False,
    take: Callable[[str, paddle.Tensor], bool] | None = None,
) -> None:
    """Fill a model's parameters and persistable buffers from safetensors files of either layout.

    The model is best built under ``paddle.LazyGuard()``, so that nothing is initialised only to be
    overwritten. Tensors are read from the largest to the smallest: a large one needs extra memory while the
    model is still small, so peak memory is little more than the model. Whether a
    parameter is trained (``stop_gradient``) is kept.

    Args:
        model: in Paddle's layout; what other processes have of routed experts is not read.
        specs: of all tensors of the checkpoint, the model's among them.
        folder: the checkpoint.
        dtype: of the weights in memory, ``float32``, ``bfloat16`` or ``float16``; tensors with a dtype of
            their own keep that.
        progress: show a bar of bytes where the checkpoint is large.
        take: called first with the name and the values of each tensor, in Paddle's layout, perhaps not in
            order in memory. Where it returns True, the model does not get them.

    Raises:
        FileNotFoundError: the folder or its files are not there.
        ValueError: unknown dtype; damaged or contradictory files; or the tensors that are missing, unexpected
            or misshapen, all of them in one message.
    """
    check_dtype(dtype)
    targets = model_tensors(model, specs)
    stored = open_checkpoint(folder)
    layout = detect_layout(stored, specs)
    differences = find_differences(stored, specs, layout)
    if differences:
        raise ValueError(f"{folder}: the checkpoint does not fit the config: {differences.describe()}")
    # Tensors of one size, as the experts are, stay in the order of the file: reading is mostly sequential.
    ordered = sorted(
        (stored.tensors[name] for name in targets),
        key=lambda tensor: (-tensor.nbytes, tensor.file, tensor.offset),
    )
    with byte_bar("loading", sum(tensor.nbytes for tensor in ordered), progress) as bar:
        for tensor in ordered:
            spec = specs[tensor.name]
            value = read_tensor(tensor, spec, layout)
            if take is None or not take(tensor.name, value):
                # A parameter must have its values in order.
                value = cast(value.contiguous(), spec.dtype or dtype)
                # The parameter takes over the memory of the value; set_value would copy it.
                value._share_buffer_to(targets[tensor.name])
            bar.update(tensor.nbytes)


def read_tensor(stored: StoredTensor, spec: ParameterSpec, layout: TensorLayout) -> paddle.Tensor:
    """One tensor in Paddle's layout and the file's dtype, on the current device; a matrix of the other layout
    is a transposed view.

    Args:
        stored: where its values are.
        layout: of the file.
    """
    value = paddle.to_tensor(stored.read())
    if spec.must_transpose(stored.shape, source=layout, target=TensorLayout.PADDLE):
        value = paddle.transpose(value, [1, 0])
    return value
