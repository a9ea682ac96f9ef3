"""Answer every line of a file.

    python examples/batch_infer.py --input examples/data/requests.jsonl --output output/answers.jsonl

writes a line for each line of the input, in its order: ``{"line": 1, "answer": "..."}``, with the line's own
``id`` where it has one. A line of the input is ``{"image": "a.jpg", "question": "..."}``, or
``{"messages": [...]}`` as in training data (docs/data.md) with the user's message as the last. A line that
cannot be answered, not being JSON or naming a picture that is not there, gets an ``error`` instead of an
answer; the others are answered. After an interruption the same command resumes. Exit code 0: all lines are
answered, 1: some are not, 2: nothing could be done.
"""

import sys

try:
    from paddlemix_vl2.cli.batch import main
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(description=__doc__))
