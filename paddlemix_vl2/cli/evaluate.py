"""Score a model on a benchmark.

    paddlemix-vl2 evaluate --task docvqa --data docvqa.tsv --output docvqa.jsonl

prints a table: the score, that of each category, and beside it what the paper reports of the published
models. The layouts of benchmarks: docs/evaluation.md. The file of --output has a line per question, with
prediction, right answers and score; a file beside it that ends in .scores.json has the table's figures.
After an interruption the same command resumes. Exit code 0: all are answered, 1: some questions could not be
asked, 2: nothing could be done.
"""

import argparse

from paddlemix_vl2.cli import resumable
from paddlemix_vl2.cli.loading import config_of
from paddlemix_vl2.cli.program import say, show


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return resumable.main(argv, prog, description, add_arguments, evaluate)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    resumable.add_common_flags(parser)
    add = parser.add_argument
    add("--task", required=True, metavar="NAME", help="docvqa, mmmu, refcoco_val ...; own for own questions")
    add("--data", required=True, metavar="FILE", help="the questions: .tsv, .json or .jsonl")
    add("--split", help="only the records of this split, where the file has several")
    add(
        "--bbox_format",
        default="xyxy",
        choices=["xyxy", "xywh"],
        help="boxes with right and bottom (default), or with width and height",
    )


def run(arguments: argparse.Namespace) -> int:
    return resumable.report(evaluate(arguments))


def evaluate(arguments: argparse.Namespace) -> int:
    """Ask, score, print.

    Returns:
        how many questions could not be asked.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2.evaluation import evaluator
    from paddlemix_vl2.evaluation.journal import digest
    from paddlemix_vl2.evaluation.tasks import find_task
    from paddlemix_vl2.files import write_object
    from paddlemix_vl2.hub import resolve_checkpoint

    task = find_task(arguments.task)
    arguments.max_new_tokens = arguments.max_new_tokens or task.max_new_tokens
    questions = open_questions(arguments, task)
    folder = resolve_checkpoint(arguments.model_path)
    config_of(folder)  # says which family it is, where it is another
    processor = evaluator.load_processor(folder, task)
    named = {name: getattr(arguments, name) for name in ("task", "split", "bbox_format")}
    journal = resumable.open_journal(arguments, folder, len(questions), **named, data=digest(arguments.data))
    benchmark = evaluator.Benchmark(questions)
    results = resumable.answer(benchmark, journal, processor, arguments, folder)
    summary = evaluator.summarize(task, results)
    write_object(arguments.output.with_suffix(".scores.json"), summary)
    show(evaluator.to_markdown(summary))
    say(f"written: {arguments.output}, {arguments.output.with_suffix('.scores.json')}")
    return summary["failed"]


def open_questions(arguments: argparse.Namespace, task):
    """The questions that the flags name."""
    from paddlemix_vl2.data.records import open_records
    from paddlemix_vl2.evaluation.questions import QuestionFile

    records = open_records(arguments.data)
    return QuestionFile(
        records, task, arguments.image_dir, arguments.split, arguments.limit, arguments.bbox_format
    )
