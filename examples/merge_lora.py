"""Merge a LoRA adapter into its base model.

    python examples/merge_lora.py --model_path paddlemix_vl2/demo/checkpoint \\
        --adapter_path output/demo_lora --output output/demo_merged

prints the folder of an ordinary checkpoint in the published layout, with the files of processor and
tokenizer: it loads without the adapter and answers as base and adapter do. ``--dtype`` is that of the base's
files where it is not given. An older checkpoint in ``--output`` is replaced when the new one is whole.
"""

import argparse
import shutil
import sys
import warnings
from pathlib import Path

import inference_cli

# What a checkpoint folder may hold: only a folder of nothing else is replaced.
CHECKPOINT_FILES = (
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def main(argv: list[str] | None = None) -> int:
    try:
        folder = merge(make_parser().parse_args(argv))
    except (ValueError, OSError) as error:
        inference_cli.say("error: " + " ".join(str(error).split()))
        return 2
    print(f"The merged model is in {folder}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = inference_cli.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model_path", required=True, help="the base model: checkpoint folder or hub name")
    add("--adapter_path", required=True, metavar="FOLDER", help="what the LoRA run has written")
    add("--output", required=True, type=Path, metavar="FOLDER", help="where to write the merged checkpoint")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: the base's)")
    return parser


def merge(arguments: argparse.Namespace) -> Path:
    """Load, merge, write.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
        from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, device
        from paddlemix_vl2.checkpoints.reader import open_checkpoint
        from paddlemix_vl2.hub import resolve_checkpoint
        from paddlemix_vl2.training.adapters import load_adapter, merge_adapter
        from paddlemix_vl2.training.checkpoint import begin_folder, finish_folder, write_model

    output = arguments.output
    inference_cli.check_adapter(arguments.adapter_path)
    base = resolve_checkpoint(arguments.model_path)
    check_output(output, base, Path(arguments.adapter_path))
    stored = open_checkpoint(base).tensors.get("image_newline")
    dtype = arguments.dtype or (stored.dtype if stored else "float32")
    device.set_device("cpu")  # nothing is computed but the sums, and main memory holds larger models
    processor = DeepseekVLV2Processor.from_pretrained(base)
    inference_cli.say(f"loading {base} in {dtype}")
    model = DeepseekVLV2ForCausalLM.from_pretrained(base, dtype=dtype, engine="eager")
    model = merge_adapter(load_adapter(model, arguments.adapter_path))
    inference_cli.say(f"writing {output}")
    temporary = begin_folder(output)
    try:
        write_model(model, processor, temporary)
        finish_folder(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def check_output(output: Path, base: Path, adapter: Path) -> None:
    """Refuse to replace anything but an older checkpoint.

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


if __name__ == "__main__":
    sys.exit(main())
