"""Ask a model that was trained on synthetic pictures every kind of question about new ones, and count.

    python examples/evaluate_demo.py --model_path output/demo --samples_per_kind 50 --output scores.json

prints a table of right answers by kind and language. Each question is asked alone, about a picture that is
not in the training data, and answered greedily. The file of --output holds the table and every answer.
"""

import sys

try:
    from paddlemix_vl2.cli.evaluate_demo import main
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(description=__doc__))
