"""Metadata and shapes decide the layout, contradictions are refused, all differences are named."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from paddlemix_vl2.checkpoints.comparison import Differences, detect_layout, find_differences
from paddlemix_vl2.checkpoints.reader import open_checkpoint
from paddlemix_vl2.checkpoints.specs import ParameterSpec, TensorLayout

WIDE = "projector.layers.0.weight"
SQUARE = "projector.layers.2.weight"
FORMATS = {None: None, "np": {"format": "np"}, "pt": {"format": "pt"}, "pd": {"format": "pd"}}


@pytest.fixture
def stored_in(biased_case, write_folder, to_paddle):
    """layout, metadata -> the golden weights stored so, and what the config expects."""

    def store(layout: TensorLayout, metadata: dict | None = None, changes: dict | None = None):
        weights = {**biased_case.weights, **(changes or {})}
        if layout is TensorLayout.PADDLE:
            weights = {name: to_paddle(name, array) for name, array in weights.items()}
        return open_checkpoint(write_folder(weights, metadata)), biased_case.specs

    return store


@pytest.mark.parametrize("file_format", [None, "np", "pt"])
def test_published(stored_in, file_format):
    assert detect_layout(*stored_in(TensorLayout.PUBLISHED, FORMATS[file_format])) is TensorLayout.PUBLISHED


@pytest.mark.parametrize("file_format", [None, "np", "pd"])
def test_paddle(stored_in, file_format):
    assert detect_layout(*stored_in(TensorLayout.PADDLE, FORMATS[file_format])) is TensorLayout.PADDLE


@pytest.mark.parametrize(
    ("layout", "file_format"), [(TensorLayout.PUBLISHED, "pd"), (TensorLayout.PADDLE, "pt")]
)
def test_metadata_against_shapes(stored_in, layout, file_format):
    with pytest.raises(ValueError, match=r"the metadata say \[(in, out|out, in)\], the shapes .* say"):
        detect_layout(*stored_in(layout, FORMATS[file_format]))


def test_mixed_shapes(stored_in, biased_case):
    changes = {WIDE: biased_case.weights[WIDE].T}
    with pytest.raises(ValueError, match=rf"are \[out, in\] but 1 are \[in, out\]: {WIDE}"):
        detect_layout(*stored_in(TensorLayout.PUBLISHED, changes=changes))


def test_files_with_different_metadata(tmp_path, biased_case):
    weights = biased_case.weights
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"image_newline": weights["image_newline"]}, tmp_path / first, {"format": "pt"})
    save_file({"view_seperator": weights["view_seperator"]}, tmp_path / second, {"format": "pd"})
    index = f'{{"weight_map": {{"image_newline": "{first}", "view_seperator": "{second}"}}}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"00001.*\(pt\) and .*00002.*\(pd\) name different layouts"):
        detect_layout(open_checkpoint(tmp_path), biased_case.specs)


def linear(name: str, shape: tuple[int, int]) -> ParameterSpec:
    return ParameterSpec(name, shape, linear=True)


def test_square_weights_only(write_folder):
    newline = ParameterSpec("image_newline", (4,))
    expected = {SQUARE: linear(SQUARE, (4, 4)), newline.name: newline}
    weights = {name: np.zeros(spec.shape, np.float32) for name, spec in expected.items()}
    with pytest.raises(ValueError, match="all Linear weights are square and no metadata"):
        detect_layout(open_checkpoint(write_folder(weights, name="silent")), expected)
    for name, layout in (("pt", TensorLayout.PUBLISHED), ("pd", TensorLayout.PADDLE)):
        assert detect_layout(open_checkpoint(write_folder(weights, FORMATS[name], name)), expected) is layout


def test_of_another_model_altogether(write_folder):
    """No shape fits either layout: whatever the layout, the comparison names everything."""
    stored = open_checkpoint(write_folder({WIDE: np.zeros((2, 5), np.float32)}))
    expected = {WIDE: linear(WIDE, (3, 4)), SQUARE: linear(SQUARE, (3, 3))}
    differences = find_differences(stored, expected, detect_layout(stored, expected))
    assert differences.missing == [SQUARE]
    assert differences.misshapen == [f"{WIDE} is [2, 5], expected [3, 4]"]


def test_equal(stored_in):
    stored, expected = stored_in(TensorLayout.PUBLISHED)
    assert not find_differences(stored, expected, TensorLayout.PUBLISHED)


def test_gate_either_way_round_in_paddle_layout(stored_in, biased_case):
    gate = "language.model.layers.1.mlp.gate.weight"
    stored, expected = stored_in(TensorLayout.PADDLE, changes={gate: biased_case.weights[gate].T})
    assert stored.tensors[gate].shape == (48, 8)
    assert not find_differences(stored, expected, TensorLayout.PADDLE)


def test_all_kinds_together(biased_case, write_folder):
    weights = dict(biased_case.weights)
    del weights["image_newline"]
    weights["surplus"] = np.zeros(1, np.float32)
    weights[WIDE] = np.zeros((48, 95), np.float32)
    weights["view_seperator"] = np.zeros(48, np.int64)
    expected = biased_case.specs
    differences = find_differences(open_checkpoint(write_folder(weights)), expected, TensorLayout.PUBLISHED)
    assert differences.describe() == (
        "1 missing: image_newline; 1 unexpected: surplus; "
        f"1 misshapen: {WIDE} is [48, 95], expected [48, 96]; "
        "1 of a wrong dtype: view_seperator is I64, expected one of float32, bfloat16, float16"
    )


def test_long_lists_are_shortened():
    names = [f"tensor{index:02d}" for index in range(25)]
    text = Differences(missing=names, unexpected=[], misshapen=[], wrong_dtype=[]).describe()
    assert text.startswith("25 missing: tensor00") and "\n" not in text
    assert "tensor19 and 5 more" in text and "tensor20" not in text
