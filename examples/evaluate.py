"""Score a model on a benchmark.

    python examples/evaluate.py --task docvqa --data examples/data/docvqa.tsv --output output/docvqa.jsonl

prints a table: the score, that of each category, and beside it what the paper reports of the published
models. The questions here are synthetic; the layouts of benchmarks: docs/evaluation.md.
The file of --output has a line per question, with prediction, right answers and score; a file beside it that
ends in .scores.json has the table's figures. After an interruption the same command resumes. Exit code 0: all
are answered, 1: some questions could not be asked, 2: nothing could be done.
"""

import sys

try:
    from paddlemix_vl2.cli.evaluate import main
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(description=__doc__))
