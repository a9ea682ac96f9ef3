"""Show what a checkpoint holds, and where it differs from what a configuration expects.

    paddlemix-vl2 inspect FOLDER
    paddlemix-vl2 inspect FOLDER --against configs/model/tiny.json

Prints counts, dtypes, sizes, geometry and layout, then "as expected" or the differences. The exit code is 0
where the checkpoint is as expected, 1 where it differs, 2 where it cannot be read. FOLDER may be a hub name.
Only the headers of the files are read.
"""

import argparse
import math
from collections import Counter

from paddlemix_vl2.cli.loading import config_of
from paddlemix_vl2.cli.program import execute, show


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return execute(argv, prog, description, add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", help="the checkpoint")
    add("--against", metavar="CONFIG", help="config.json to compare with (default: the folder's own)")


def run(arguments: argparse.Namespace) -> int:
    """Read and compare.

    Raises:
        ValueError, OSError: what cannot be read, and why.
    """
    from paddlemix_vl2.checkpoints.reader import open_checkpoint
    from paddlemix_vl2.hub import CONFIG_FILE, resolve_checkpoint

    folder = resolve_checkpoint(arguments.folder)
    stored = open_checkpoint(folder)
    config = config_of(arguments.against or folder)
    show("\n".join([*describe_files(stored), *describe_geometry(config)]))
    layout, verdict = compare(stored, config)
    show(f"layout: {layout}")
    show(f"compared with {arguments.against or folder / CONFIG_FILE}: {verdict or 'as expected'}")
    return 1 if verdict else 0


def describe_files(stored) -> list[str]:
    """Counts and sizes of all tensors, by dtype, by part of the model and by file."""
    from paddlemix_vl2.checkpoints.files import PARTS

    tensors = list(stored.tensors.values())
    dtypes = Counter(tensor.dtype for tensor in tensors)
    parts = {part: [t for t in tensors if t.name.partition(".")[0] == part] for part in PARTS}
    parts["other"] = [tensor for tensor in tensors if tensor.name.partition(".")[0] not in PARTS]
    files = {file.name: [t for t in tensors if t.file == file] for file in stored.formats}
    return [
        f"{stored.folder}: {describe_size(tensors)} in {len(files)} file(s)",
        "dtypes: " + ", ".join(f"{dtype} ({count:,} tensors)" for dtype, count in dtypes.most_common()),
        *(f"  {part}: {describe_size(members)}" for part, members in parts.items()),
        *(f"  {file}: {describe_size(members)}" for file, members in files.items()),
    ]


def describe_size(tensors: list) -> str:
    num_parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    return f"{len(tensors):,} tensors, {num_parameters:,} parameters, {num_bytes / 1e9:.3f} GB"


def describe_geometry(config) -> list[str]:
    """The sizes of the parts, a line each."""
    vision, language = config.vision_config, config.language_config
    attention = "latent attention" if language.use_mla else "multi-head attention"
    experts = "no experts"
    if language.n_routed_experts is not None:
        experts = (
            f"{language.n_routed_experts} experts of width {language.moe_intermediate_size} "
            f"({language.num_experts_per_tok} per token by {language.topk_method}, "
            f"{language.n_shared_experts or 0} shared)"
        )
    return [
        f"language: {language.num_hidden_layers} layers of width {language.hidden_size}, {attention} with "
        f"{language.num_attention_heads} heads, {experts}, vocabulary {language.vocab_size}",
        f"vision: {vision.layers} layers of width {vision.width} with {vision.heads} heads, "
        f"{config.image_tokens_per_side**2} tokens per tile of {vision.image_size} x {vision.image_size}",
    ]


def compare(stored, config) -> tuple[str, str]:
    """The layout, and what differs from the config (empty where nothing does)."""
    from paddlemix_vl2.checkpoints.comparison import detect_layout, find_differences
    from paddlemix_vl2.models.meta import model_specs

    expected = model_specs(config)
    try:
        layout = detect_layout(stored, expected)
    except ValueError as error:
        return "contradictory", str(error)
    differences = find_differences(stored, expected, layout)
    return f"{layout.value}, Linear weights are {layout.axes}", differences.describe() if differences else ""
