"""Merge a LoRA adapter into its base model.

    paddlemix-vl2 merge --model_path base --adapter_path output/lora --output output/merged

prints the folder of an ordinary checkpoint in the published layout, with the files of processor and
tokenizer: it loads without the adapter and answers as base and adapter do. --dtype is that of the base's
files where it is not given. An older checkpoint in --output is replaced when the new one is whole.
"""

import argparse
from pathlib import Path

from paddlemix_vl2.cli.loading import check_adapter
from paddlemix_vl2.cli.program import execute, say, show
from paddlemix_vl2.device import DTYPES
from paddlemix_vl2.files import replace_folder
from paddlemix_vl2.hub import CHECKPOINT_FILES


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return execute(argv, prog, description, add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_path", required=True, help="the base model: checkpoint folder or hub name")
    add("--adapter_path", required=True, metavar="FOLDER", help="what the LoRA run has written")
    add("--output", required=True, type=Path, metavar="FOLDER", help="where to write the merged checkpoint")
    add("--dtype", choices=DTYPES, help="of the weights (default: the base's)")


def run(arguments: argparse.Namespace) -> int:
    """Load, merge, write.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2 import device
    from paddlemix_vl2.auto import AutoModelForCausalLM, AutoProcessor
    from paddlemix_vl2.checkpoints.reader import open_checkpoint
    from paddlemix_vl2.hub import resolve_checkpoint
    from paddlemix_vl2.models.adapters import load_adapter, merge_adapter

    output = arguments.output
    check_adapter(arguments.adapter_path)
    base = resolve_checkpoint(arguments.model_path)
    check_output(output, base, Path(arguments.adapter_path))
    largest = max(open_checkpoint(base).tensors.values(), key=lambda tensor: tensor.nbytes)
    dtype = arguments.dtype or largest.dtype
    device.set_device("cpu")  # nothing is computed but the sums, and main memory holds larger models
    processor = AutoProcessor.from_pretrained(base)
    say(f"loading {base} in {dtype}")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, backend="paddle")
    model = merge_adapter(load_adapter(model, arguments.adapter_path))
    say(f"writing {output}")
    write(model, processor, output)
    show(f"The merged model is in {output}")
    return 0


def write(model, processor, output: Path) -> None:
    """Write a checkpoint beside its place; an older one is replaced when the new one is whole."""
    with replace_folder(output) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def check_output(output: Path, base: Path, adapter: Path) -> None:
    """Refuse to replace anything but an older checkpoint: a folder of a checkpoint's files and nothing else.

    Raises:
        ValueError: the folder is that of the base or of the adapter, or holds files of another kind.
    """
    if output.resolve() in (base.resolve(), adapter.resolve()):
        raise ValueError(f"--output {output}: would replace what is read; name another folder")
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"--output {output}: is a file; name a folder")
    strange = sorted(path.name for path in output.iterdir() if not any(map(path.match, CHECKPOINT_FILES)))
    if strange:
        raise ValueError(
            f"--output {output}: holds {strange[0]}, so it is not just a checkpoint; name another folder"
        )
