"""Plot how a checkpoint routes a text and a picture through its experts.

    python tools/plot_router.py --model_path output/demo --image_file examples/images/shapes.png \\
        --text "Which shapes are in this picture?" --output router.png

reads the text (a user's question, in the conversation template) and the picture in one forward pass and plots
the share of every expert in every MoE layer with MaxVio and entropy, the text's tokens in the colour of
their first expert, and the picture's image tokens likewise. ``docs/router.md`` says how to read the figure.
"""

import argparse
import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, device
    from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
    from paddlemix_vl2.figures.router import choose_layer, label_tokens, picture_views, read_router
    from paddlemix_vl2.figures.router_figure import plot_routing
    from paddlemix_vl2.files import check_output
    from paddlemix_vl2.generation.decoding import check_lengths
    from paddlemix_vl2.hub import resolve_checkpoint
    from paddlemix_vl2.processing.pictures import open_picture

# Beside this file.
from plotting import save_figure

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code, say

EXAMPLE_TEXT = (
    "A mixture of experts sends every token to a few small networks. The red circle is left of 12 blue "
    "squares, and 3 + 4 = 7; def area(r): return 3.14 * r ** 2"
)


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(make_parser().parse_args(argv)))


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint folder or hub name")
    add("--image_file", metavar="FILE", help="a picture; it stands in front of the text")
    add("--text", default=EXAMPLE_TEXT, help="what the user says (default: an example)")
    add("--layer", type=int, metavar="N", help="whose tokens to show, from 0 (default: the middle one)")
    add("--dtype", default="auto", choices=("auto", *device.DTYPES), help="of the weights")
    add("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    add("--output", required=True, metavar="FILE", help="the figure, as .png, .jpg or .webp")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Read, plot, save.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    check_output(arguments.output)
    device.set_device(arguments.device)
    picture = None if arguments.image_file is None else open_picture(arguments.image_file)
    folder = resolve_checkpoint(arguments.model_path)
    language = DeepseekVLV2Config.from_json(folder).language_config
    layers, layer = choose_layer(language, arguments.layer)
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    text = arguments.text if picture is None else f"{processor.image_token}\n{arguments.text}"
    conversation = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    sample = processor.process_one(conversation, [] if picture is None else [picture])
    check_lengths(len(sample.input_ids), 1, None, language.max_sequence_length)
    model = DeepseekVLV2ForCausalLM.from_pretrained(folder, dtype=arguments.dtype, backend="paddle")
    reading = read_router(model, processor.batchify([sample]), layers, layer)
    labels, fonts, note = label_tokens(processor.tokenizer, reading.token_ids[~reading.is_image])
    if note:
        say(f"note: {note}")
    views = None if picture is None else picture_views(processor, sample)
    save_figure(plot_routing(reading, labels, fonts, views), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
