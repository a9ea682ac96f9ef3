"""Ask a question about one picture.

    python examples/single_image_infer.py --model_path deepseek-ai/deepseek-vl2-tiny \\
        --image_file examples/images/shapes.png --question "Which shapes are in this picture?"

The answer appears on the standard output as it is generated. To find something, ask with the grounding tokens
and give a file for the picture with the boxes:

    python examples/single_image_infer.py --model_path deepseek-ai/deepseek-vl2-tiny \\
        --image_file examples/images/shapes.png --output output/boxes.png \\
        --question "Locate <|ref|>the red circle<|/ref|> in the given image."
"""

import inference_cli
import processes


def main(argv: list[str] | None = None) -> int:
    parser = inference_cli.make_parser(__doc__)
    parser.add_argument("--image_file", required=True, metavar="FILE", help="the picture")
    return inference_cli.run(parser, argv, lambda arguments: [arguments.image_file])


if __name__ == "__main__":
    processes.leave(main())
