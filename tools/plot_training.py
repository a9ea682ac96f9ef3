"""Plot the curves of a training run, or of several stages one after the other.

    python tools/plot_training.py output/stage1 output/stage2 --output curves.png

reads ``metrics.jsonl`` of every folder and plots loss and evaluation loss, learning rate, gradient norm,
MaxVio and entropy of the router, and tokens per second. The steps of a stage continue those of the one
before.
"""

import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
    # Beside this file.
    from plotting import save_figure

    from paddlemix_vl2.cli.arguments import OneLineParser
    from paddlemix_vl2.cli.program import exit_code
    from paddlemix_vl2.figures.training import join_stages, plot_training
    from paddlemix_vl2.files import check_output


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(argv))


def run(argv: list[str] | None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="output_dir of a run")
    parser.add_argument("--output", required=True, metavar="FILE", help="the figure, as .png, .jpg or .webp")
    arguments = parser.parse_args(argv)
    check_output(arguments.output)
    save_figure(plot_training(join_stages(arguments.folders)), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
