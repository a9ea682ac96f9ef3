"""Score a model on a benchmark.

    python examples/evaluate.py --task docvqa --data examples/data/docvqa.tsv --output output/docvqa.jsonl

prints a table: the score, that of each category, and beside it what the paper reports of the published
models. The questions here are a few about drawn pictures; the layouts of benchmarks: docs/evaluation.md.
The file of --output has a line per question, with prediction, right answers and score; a file beside it that
ends in .scores.json has the table's figures. Interrupted, the same command goes on. Exit code 0: all are
answered, 1: some questions could not be asked, 2: nothing could be done.
"""

import argparse
import sys

import batch_cli
import inference_cli


def main(argv: list[str] | None = None) -> int:
    parser = batch_cli.make_parser(__doc__)
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
    return batch_cli.exit_code(parser, argv, run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, score, print.

    Returns:
        how many questions could not be asked.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2.evaluation import evaluator
    from paddlemix_vl2.evaluation.journal import digest
    from paddlemix_vl2.evaluation.questions import QuestionFile
    from paddlemix_vl2.evaluation.records import open_records
    from paddlemix_vl2.evaluation.tasks import find_task
    from paddlemix_vl2.hub import resolve_checkpoint
    from paddlemix_vl2.processing.json_files import write_object

    task = find_task(arguments.task)
    arguments.max_new_tokens = arguments.max_new_tokens or task.max_new_tokens
    questions = QuestionFile(
        open_records(arguments.data),
        task,
        arguments.image_dir,
        arguments.split,
        arguments.limit,
        arguments.bbox_format,
    )
    folder = resolve_checkpoint(arguments.model_path)
    processor = evaluator.load_processor(folder, task)
    named = {name: getattr(arguments, name) for name in ("task", "split", "bbox_format")}
    journal = batch_cli.open_journal(arguments, folder, len(questions), **named, data=digest(arguments.data))
    benchmark = evaluator.Benchmark(questions)
    results = batch_cli.answer(benchmark, journal, processor, arguments, folder)
    summary = evaluator.summarize(task, results)
    write_object(arguments.output.with_suffix(".scores.json"), summary)
    print(evaluator.to_markdown(summary))
    inference_cli.say(f"written: {arguments.output}, {arguments.output.with_suffix('.scores.json')}")
    return summary["failed"]


if __name__ == "__main__":
    sys.exit(main())
