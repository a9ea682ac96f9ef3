"""Ask a question about one picture, reading the prompt in chunks to bound memory.

    python examples/increment_prefilling_infer.py --model_path deepseek-ai/deepseek-vl2-small \\
        --chunk_size 512 --image_file examples/images/shapes.png \\
        --question "Which shapes are in this picture?"

Prints the same answer as single_image_infer.py: chunks change how much memory the activations of a long
prompt take, not what is computed. Smaller chunks take less memory and more time.
"""

import inference_cli
import processes

CHUNK_SIZE = 512


def main(argv: list[str] | None = None) -> int:
    parser = inference_cli.make_parser(__doc__)
    parser.add_argument("--image_file", required=True, metavar="FILE", help="the picture")
    parser.set_defaults(chunk_size=CHUNK_SIZE)
    return inference_cli.run(parser, argv, lambda arguments: [arguments.image_file])


if __name__ == "__main__":
    processes.leave(main())
