"""Ask a question about several pictures.

    python examples/multi_image_infer.py --model_path deepseek-ai/deepseek-vl2-tiny \\
        --image_files examples/images/red_circle.png examples/images/blue_square.png \\
        --question "What is different between the two pictures?"

The answer appears on the standard output as it is generated. ``<image>`` in the question says where each
picture belongs; without it they come first, one after the other. More than two pictures are seen without
local tiles, as the published models were trained.
"""

import inference_cli
import processes

NUMBERED = ("image_file_1", "image_file_2", "image_file_3")


def main(argv: list[str] | None = None) -> int:
    parser = inference_cli.make_parser(__doc__)
    parser.add_argument(
        "--image_files", nargs="+", default=[], metavar="FILE", help="the pictures, any number"
    )
    for name in NUMBERED:
        parser.add_argument(f"--{name}", metavar="FILE", help="one picture; behind those of --image_files")
    parser.add_argument(
        "--draw_on",
        type=inference_cli.positive,
        metavar="N",
        help="picture for the boxes, from 1 (default: the last)",
    )
    return inference_cli.run(parser, argv, list_pictures)


def list_pictures(arguments) -> list[str]:
    numbered = [getattr(arguments, name) for name in NUMBERED]
    pictures = arguments.image_files + [file for file in numbered if file is not None]
    if not pictures:
        raise ValueError("no picture; give --image_files FILE FILE ... or --image_file_1 FILE and so on")
    return pictures


if __name__ == "__main__":
    processes.leave(main())
