"""Print what answering with a model needs in memory, from its configuration alone.

    python tools/estimate_memory.py
    python tools/estimate_memory.py tiny --positions 1280
    python tools/estimate_memory.py path/to/checkpoint --batch_size 4 --chunk_size 512

One table row for each device and kind of weights (float16 takes as much as bfloat16), in GB of 10^9 bytes.
``vision``, ``prefill`` and ``logits`` are activations of phases that follow one another. ``loaded`` is what
is there before the first answer, weights and process; ``answering`` the most from then on: the largest phase
and the cache besides. A GPU's own context is not counted. paddlemix_vl2/memory.py has the arithmetic.
"""

import argparse
import sys
from pathlib import Path

# Beside this file.
from command_line import OneLineParser, exit_code

from paddlemix_vl2.configuration import DeepseekVLV2Config
from paddlemix_vl2.memory import PLACEMENTS, MemoryEstimate, Placement, estimate

GEOMETRIES = Path(__file__).resolve().parents[1] / "configs" / "model"
NAMES = ("tiny", "small", "base")
COLUMNS = ("weights", "cache", "vision", "prefill", "logits", "process", "loaded", "answering")


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> None:
    rows = [row for model in arguments.models for row in estimate_model(model, arguments)]
    print("\n".join(as_table(rows)))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        default=NAMES,
        metavar="MODEL",
        help="tiny, small, base, a config.json or a checkpoint folder (default: the three)",
    )
    add("--positions", type=int, default=2048, metavar="N", help="of prompt and answer (default 2048)")
    add("--batch_size", type=int, default=1, metavar="N", help="default 1")
    add("--chunk_size", type=int, metavar="N", help="tokens of the prompt to read at a time (default: all)")
    return parser.parse_args(argv)


def estimate_model(model: str, arguments: argparse.Namespace) -> list[tuple[str, Placement, MemoryEstimate]]:
    """One estimate for each placement."""
    config = DeepseekVLV2Config.from_json(GEOMETRIES / f"{model}.json" if model in NAMES else model)
    sizes = (arguments.positions, arguments.batch_size, arguments.chunk_size)
    return [(model, placement, estimate(config, placement, *sizes)) for placement in PLACEMENTS]


def as_table(rows: list[tuple[str, Placement, MemoryEstimate]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| GB | weights as | {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * len(COLUMNS)]
    for model, placement, parts in rows:
        cells = [f"{getattr(parts, column) / 1e9:.2f}" for column in COLUMNS]
        lines.append(f"| {model}, {placement.device} | {placement.weights} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
