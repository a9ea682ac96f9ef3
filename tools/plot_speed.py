"""Plot what an answer costs against its length and against the number of tiles.

    python tools/make_random_checkpoint.py tiny /tmp/tiny
    python tools/plot_speed.py /tmp/tiny --output speed.png

times prefill and decode steps behind prompts of ``--prompt_tokens``, and the vision encoder over ``--tiles``
tiles, each beside its hardware limit as tools/benchmark.py does, prints a table and plots it.
"""

import argparse
import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
    # Beside this file; benchmark before Paddle itself.
    import benchmark
    from matplotlib.figure import Figure
    from plotting import save_figure

    from paddlemix_vl2 import DeepseekVLV2ForCausalLM
    from paddlemix_vl2.cli.arguments import OneLineParser, add_backend_flag
    from paddlemix_vl2.cli.program import exit_code, say
    from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
    from paddlemix_vl2.device import set_device
    from paddlemix_vl2.files import check_output
    from paddlemix_vl2.generation.decoding import check_lengths
    from paddlemix_vl2.hub import resolve_checkpoint
    from paddlemix_vl2.models.cpu_backend import choose_weights

LENGTHS, TILES = (256, 1024, 2048, 4064), (1, 2, 5, 10)
SIZE, DPI = (13.0, 4.0), 130  # inches
# step -> title, what it is plotted against
PANELS = {
    "prefill": ("prefill", "tokens"),
    "decode": ("a decode step", "tokens"),
    "vision": ("vision", "tiles"),
}

Timings = dict[str, dict[int, dict]]


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(parse_arguments(argv)))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("model_path", type=Path, help="checkpoint folder; a random one will do")
    add("--output", required=True, metavar="FILE", help="the figure, as .png, .jpg or .webp")
    add("--prompt_tokens", type=int, nargs="+", default=LENGTHS, metavar="N")
    add("--tiles", type=int, nargs="+", default=TILES, metavar="N")
    add(
        "--new_tokens", type=int, default=12, metavar="N", help="decode steps behind each prompt (default 12)"
    )
    add("--repeats", type=int, default=3, metavar="N", help="default 3")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 or int8")
    add_backend_flag(parser)
    add("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    arguments = parser.parse_args(argv)
    numbers = (*arguments.prompt_tokens, *arguments.tiles, arguments.new_tokens - 1, arguments.repeats)
    if min(numbers) < 1:
        raise ValueError("numbers are at least 1, --new_tokens at least 2")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    check_output(arguments.output)
    set_device(arguments.device)
    config = DeepseekVLV2Config.from_json(resolve_checkpoint(arguments.model_path))
    longest = config.language_config.max_sequence_length
    check_lengths(max(arguments.prompt_tokens), arguments.new_tokens, None, longest)
    weights = choose_weights(arguments.dtype, arguments.backend)
    model = DeepseekVLV2ForCausalLM.from_pretrained(arguments.model_path, arguments.dtype, arguments.backend)
    timings = measure(model, weights, arguments)
    print("\n".join(as_table(timings)))
    title = f"{arguments.model_path.name}, {weights or model.weight_dtype}"
    save_figure(plot(timings, title), arguments.output)


def measure(model, weights: str | None, arguments: argparse.Namespace) -> Timings:
    """step -> tokens or tiles -> what tools/benchmark.py says of it."""
    timings: Timings = {name: {} for name in PANELS}
    for length in sorted(arguments.prompt_tokens):
        say(f"{length} tokens")
        one = argparse.Namespace(**{**vars(arguments), "prompt_tokens": length})
        timings["prefill"][length] = benchmark.time_prefill(model, one, weights)
        timings["decode"][length] = benchmark.time_decode(model, one, weights)
    for tiles in sorted(arguments.tiles):
        say(f"{tiles} tiles")
        one = argparse.Namespace(**{**vars(arguments), "tiles": tiles})
        timings["vision"][tiles] = benchmark.time_vision(model, one, weights)
    return timings


def as_table(timings: Timings) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| step | against | seconds | hardware limit | times the limit |", "|---|---:|---:|---:|---:|"]
    for name, (_, unit) in PANELS.items():
        for number, timed in timings[name].items():
            numbers = f"{timed['seconds']:.3f} | {timed['limit_seconds']:.3f} | {timed['times_limit']:.2f}"
            lines.append(f"| {name} | {number} {unit} | {numbers} |")
    return lines


def plot(timings: Timings, title: str) -> Figure:
    figure = Figure(SIZE, dpi=DPI, layout="constrained")
    figure.suptitle(title)
    for axes, (name, (panel, unit)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        numbers = list(timings[name])
        for label, key, style in (("measured", "seconds", "o-"), ("hardware limit", "limit_seconds", "o:")):
            axes.plot(numbers, [timings[name][number][key] for number in numbers], style, label=label)
        axes.set(title=panel, xlabel=unit, ylabel="seconds", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
