"""Merge a LoRA adapter into its base model.

    python examples/merge_lora.py --model_path paddlemix_vl2/demo/checkpoint \\
        --adapter_path output/demo_lora --output output/demo_merged

prints the folder of an ordinary checkpoint in the published layout, with the files of processor and
tokenizer: it loads without the adapter and answers as base and adapter do. ``--dtype`` is that of the base's
files where it is not given. An older checkpoint in ``--output`` is replaced when the new one is whole.
"""

import sys

try:
    from paddlemix_vl2.cli.merge import main
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(description=__doc__))
