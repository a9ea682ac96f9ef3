"""Compare the tensors of a checkpoint with those that its config expects."""

from dataclasses import dataclass

from paddlemix_vl2.checkpoints.files import STORED_DTYPES, shorten
from paddlemix_vl2.checkpoints.reader import StoredCheckpoint
from paddlemix_vl2.checkpoints.specs import Specs, TensorLayout

# metadata["format"] of a file -> its layout. PaddleNLP writes "np" for its own layout, but a numpy program
# may write it for any, so "np" (like no metadata) says nothing and the shapes decide.
_LAYOUT_OF_FORMAT = {"pt": TensorLayout.PUBLISHED, "pd": TensorLayout.PADDLE, "paddle": TensorLayout.PADDLE}


def detect_layout(stored: StoredCheckpoint, specs: Specs) -> TensorLayout:
    """Which layout the files are in, by their metadata and by the shapes of all non-square Linear weights.

    Where both are known, they must agree. Where no shape shows it, because every such weight is missing or
    misshapen, the comparison will report that, and the layout does not matter.

    Raises:
        ValueError: files, metadata and shapes contradict each other, or nothing shows the layout.
    """
    by_metadata = _layout_by_metadata(stored)
    telling = {name: spec for name, spec in specs.items() if spec.linear and len(set(spec.shape)) > 1}
    if not telling and by_metadata is None:
        raise ValueError(
            f"{stored.folder}: all Linear weights are square and no metadata (format: pt or pd) tell whether "
            "they are [out, in] or [in, out]"
        )
    by_shape = _layout_by_shape(stored, telling)
    if by_metadata and by_shape and by_metadata is not by_shape:
        raise ValueError(
            f"{stored.folder}: the metadata say {by_metadata.axes}, the shapes of the Linear weights say "
            f"{by_shape.axes}"
        )
    return by_metadata or by_shape or TensorLayout.PUBLISHED


def _layout_by_metadata(stored: StoredCheckpoint) -> TensorLayout | None:
    found = {}
    for file, file_format in stored.formats.items():
        layout = _LAYOUT_OF_FORMAT.get(file_format)
        if layout is not None:
            found.setdefault(layout, file)
    if len(found) > 1:
        files = " and ".join(f"{file.name} ({stored.formats[file]})" for file in found.values())
        raise ValueError(f"{stored.folder}: the metadata of {files} name different layouts")
    return next(iter(found), None)


def _layout_by_shape(stored: StoredCheckpoint, telling: Specs) -> TensorLayout | None:
    """The layout whose shapes the ``telling`` weights have; those that fit neither are reported elsewhere."""
    names = {layout: [] for layout in TensorLayout}
    for name in telling.keys() & stored.tensors.keys():
        for layout in TensorLayout:
            if stored.tensors[name].shape == telling[name].shape_in(layout):
                names[layout].append(name)
    minority, majority = sorted(TensorLayout, key=lambda layout: len(names[layout]))
    if names[minority]:
        raise ValueError(
            f"{stored.folder}: {len(names[majority])} Linear weights are {majority.axes} but "
            f"{len(names[minority])} are {minority.axes}: {shorten(sorted(names[minority]))}"
        )
    return majority if names[majority] else None


@dataclass(frozen=True)
class Differences:
    """Missing, unexpected and wrong tensors of a checkpoint, as names or ``name: what is wrong``."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    wrong_dtype: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen or self.wrong_dtype)

    def describe(self) -> str:
        """One line: for each kind the count and the names, at most 20 of them."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": self.misshapen,
            "of a wrong dtype": self.wrong_dtype,
        }
        parts = [f"{len(names)} {kind}: {shorten(names)}" for kind, names in kinds.items() if names]
        return "; ".join(parts)


def find_differences(stored: StoredCheckpoint, specs: Specs, layout: TensorLayout) -> Differences:
    """Compare names, shapes (in the files' ``layout``) and dtypes."""
    common = [name for name in specs if name in stored.tensors]
    misshapen = []
    for name in common:
        allowed, shape = specs[name].shapes_in(layout), stored.tensors[name].shape
        if shape not in allowed:
            misshapen.append(f"{name} is {list(shape)}, expected {list(allowed[0])}")
    return Differences(
        missing=[name for name in specs if name not in stored.tensors],
        unexpected=sorted(stored.tensors.keys() - specs.keys()),
        misshapen=misshapen,
        wrong_dtype=[
            f"{name} is {stored.tensors[name].dtype}, expected one of {', '.join(STORED_DTYPES)}"
            for name in common
            if not stored.tensors[name].loadable
        ],
    )
