"""Print what answering with a model needs in memory, from its configuration alone.

    paddlemix-vl2 estimate
    paddlemix-vl2 estimate tiny --positions 1280
    paddlemix-vl2 estimate path/to/checkpoint --batch_size 4 --chunk_size 512

One table row for each device and kind of weights (float16 takes as much as bfloat16), in GB of 10^9 bytes.
"vision", "prefill" and "logits" are activations of phases that follow one another. "loaded" is what is there
before the first answer, weights and process; "answering" the most from then on: the largest phase and the
cache besides. A GPU's own context is not counted. tiny, small and base are the published models, read from
configs/model of the repository.
"""

import argparse
from pathlib import Path

from paddlemix_vl2.cli.loading import config_of
from paddlemix_vl2.cli.program import execute, show

GEOMETRIES = Path(__file__).resolve().parents[2] / "configs" / "model"
NAMES = ("tiny", "small", "base")
COLUMNS = ("weights", "cache", "vision", "prefill", "logits", "process", "loaded", "answering")


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return execute(argv, prog, description, add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(arguments: argparse.Namespace) -> int:
    rows = [row for model in arguments.models for row in estimate_model(model, arguments)]
    show("\n".join(as_table(rows)))
    return 0


def estimate_model(model: str, arguments: argparse.Namespace) -> list[tuple]:
    """(model, execution, estimate) of each way to run it."""
    config = config_of(find_config(model))
    from paddlemix_vl2.planning.inference_memory import EXECUTIONS, estimate

    sizes = (arguments.positions, arguments.batch_size, arguments.chunk_size)
    return [(model, execution, estimate(config, execution, *sizes)) for execution in EXECUTIONS]


def find_config(model: str) -> Path:
    """Where the config of a model is.

    Raises:
        FileNotFoundError: a published model is named outside the repository.
    """
    if model not in NAMES:
        return Path(model)
    file = GEOMETRIES / f"{model}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{model}: {file} is not there; name a config.json or a checkpoint folder")
    return file


def as_table(rows: list[tuple]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| GB | weights as | {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * len(COLUMNS)]
    for model, execution, parts in rows:
        cells = [f"{getattr(parts, column) / 1e9:.2f}" for column in COLUMNS]
        lines.append(f"| {model}, {execution.device} | {execution.weight_dtype} | {' | '.join(cells)} |")
    return lines
