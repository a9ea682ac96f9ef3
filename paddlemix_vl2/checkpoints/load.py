"""Load a checkpoint into a model, one tensor at a time."""

from collections.abc import Callable
from pathlib import Path

import paddle

from paddlemix_vl2.checkpoints.comparison import detect_layout, find_differences
from paddlemix_vl2.checkpoints.expected import expected_tensors, held_tensors
from paddlemix_vl2.checkpoints.files import byte_bar, check_dtype
from paddlemix_vl2.checkpoints.parameters import cast, model_tensors
from paddlemix_vl2.checkpoints.reader import StoredTensor, open_checkpoint
from paddlemix_vl2.checkpoints.rules import Layout, must_transpose, rule_for
from paddlemix_vl2.configuration import DeepseekVLV2Config


def load_checkpoint(
    model: paddle.nn.Layer,
    config: DeepseekVLV2Config,
    folder: str | Path,
    dtype: str = "float32",
    progress: bool = False,
    take: Callable[[str, paddle.Tensor], bool] | None = None,
    experts: range | None = None,
) -> None:
    """Fill a model's parameters and persistable buffers from safetensors files of either layout.

    The model is best built under ``paddle.LazyGuard()``, so that nothing is initialised only to be
    overwritten. Tensors are read from the largest to the smallest: what a large one needs in passing is
    then taken while the model still is small, and peak memory stays at the model plus little. Whether a
    parameter is trained (``stop_gradient``) is kept.

    Args:
        model: its tensors are those of ``expected_tensors(config)``, in Paddle's layout.
        config: the configuration that the model was built from.
        folder: the checkpoint.
        dtype: of the weights in memory, ``float32``, ``bfloat16`` or ``float16``; tensors with a dtype of
            their own in ``rules.RULES`` keep that.
        progress: show a bar of bytes where the checkpoint is large.
        take: is shown each tensor first, with its name: the file's values in Paddle's layout, perhaps not in
            order in memory. Where it returns True, the model does not get it.
        experts: global indices of the routed experts that the model has, where other processes have the
            others: those are not read. All where None.

    Raises:
        FileNotFoundError: the folder or its files are not there.
        ValueError: unknown dtype; damaged or contradictory files; or the tensors that are missing, unexpected
            or misshapen, all of them in one message.
    """
    check_dtype(dtype)
    expected = expected_tensors(config)
    targets = model_tensors(model, held_tensors(expected, experts))
    stored = open_checkpoint(folder)
    layout = detect_layout(stored, expected)
    differences = find_differences(stored, expected, layout)
    if differences:
        raise ValueError(f"{folder}: the checkpoint does not fit the config: {differences.describe()}")
    # Tensors of one size, as the experts are, stay in the order of the file: reading is mostly sequential.
    ordered = sorted(
        (stored.tensors[name] for name in targets),
        key=lambda tensor: (-tensor.nbytes, tensor.file, tensor.offset),
    )
    with byte_bar("loading", sum(tensor.nbytes for tensor in ordered), progress) as bar:
        for tensor in ordered:
            value = read_tensor(tensor, expected[tensor.name], layout)
            if take is None or not take(tensor.name, value):
                # A parameter must have its values in order.
                value = cast(value.contiguous(), rule_for(tensor.name).dtype or dtype)
                # The parameter takes over the memory of the value; set_value would copy it.
                value._share_buffer_to(targets[tensor.name])
            bar.update(tensor.nbytes)


def read_tensor(stored: StoredTensor, published: tuple[int, ...], layout: Layout) -> paddle.Tensor:
    """One tensor in Paddle's layout and the file's dtype, on the current device; a matrix of the other layout
    is a transposed view.

    Args:
        stored: where its values are.
        published: its shape in the published layout.
        layout: of the file.
    """
    value = paddle.to_tensor(stored.read())
    if must_transpose(stored.name, stored.shape, published, source=layout, target=Layout.PADDLE):
        value = paddle.transpose(value, [1, 0])
    return value
