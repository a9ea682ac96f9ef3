"""Ask a question about one picture.

    python examples/single_image_infer.py --model_path deepseek-ai/deepseek-vl2-tiny \\
        --image_file examples/images/shapes.png --question "Which shapes are in this picture?"

The answer appears on the standard output as it is generated. To find something, ask with the grounding tokens
and give a file for the picture with the boxes:

    python examples/single_image_infer.py --model_path deepseek-ai/deepseek-vl2-tiny \\
        --image_file examples/images/shapes.png --output output/boxes.png \\
        --question "Locate <|ref|>the red circle<|/ref|> in the given image."
"""

import sys

try:
    from paddlemix_vl2.cli import inference
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    return inference.main(argv, description=__doc__, add_pictures=inference.add_one_picture)


if __name__ == "__main__":
    sys.exit(main())
