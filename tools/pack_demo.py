"""Make the checkpoint that ships of a trained demo model: bfloat16, processor, curves.

    python tools/pack_demo.py .cache/demo-training/stage3 paddlemix_vl2/demo/checkpoint \\
        --runs .cache/demo-training/stage0 .cache/demo-training/stage1

prints the folder and its size. ``curves.png`` shows the runs one after the other; the model card is written
by hand.
"""

import subprocess
import sys
from pathlib import Path

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code

PLOT = Path(__file__).with_name("plot_training.py")


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(argv))


def run(argv: list[str] | None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("trained", type=Path, help="folder of the trained model")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="folders with metrics.jsonl, in order"
    )
    arguments = parser.parse_args(argv)
    model = DeepseekVLV2ForCausalLM.from_pretrained(arguments.trained, dtype="float32")
    model.save_pretrained(arguments.folder, dtype="bfloat16")
    DeepseekVLV2Processor.from_pretrained(arguments.trained).save_pretrained(arguments.folder)
    curves = [
        sys.executable,
        "-W",
        "ignore",
        PLOT,
        *arguments.runs,
        "--output",
        arguments.folder / "curves.png",
    ]
    subprocess.run(list(map(str, curves)), check=True)
    size = sum(file.stat().st_size for file in arguments.folder.iterdir())
    print(f"{arguments.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
