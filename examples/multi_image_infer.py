"""Ask a question about several pictures.

    python examples/multi_image_infer.py --model_path deepseek-ai/deepseek-vl2-tiny \\
        --image_files examples/images/red_circle.png examples/images/blue_square.png \\
        --question "What is different between the two pictures?"

The answer appears on the standard output as it is generated. ``<image>`` in the question says where each
picture belongs; without it they come first, one after the other. More than two pictures are seen without
local tiles, as the published models were trained.
"""

import sys

try:
    from paddlemix_vl2.cli import inference
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    return inference.main(argv, description=__doc__, add_pictures=inference.add_several_pictures)


if __name__ == "__main__":
    sys.exit(main())
