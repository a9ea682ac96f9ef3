"""Ask a question about one picture, reading the prompt in chunks to bound memory.

    python examples/increment_prefilling_infer.py --model_path deepseek-ai/deepseek-vl2-small \\
        --chunk_size 512 --image_file examples/images/shapes.png \\
        --question "Which shapes are in this picture?"

Prints the same answer as single_image_infer.py: chunks change how much memory the activations of a long
prompt take, not what is computed. Smaller chunks take less memory and more time.
"""

import sys

try:
    from paddlemix_vl2.cli import inference
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


CHUNK_SIZE = 512


def main(argv=None):
    add_pictures = inference.add_one_picture
    return inference.main(argv, description=__doc__, add_pictures=add_pictures, chunk_size=CHUNK_SIZE)


if __name__ == "__main__":
    sys.exit(main())
