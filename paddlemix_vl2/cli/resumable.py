"""Files of questions: flags, the model, and a run that resumes after an interruption."""

import argparse
import sys
from pathlib import Path

from paddlemix_vl2.cli.arguments import add_model_flags, positive
from paddlemix_vl2.cli.loading import check_model_flags, config_of, load_model
from paddlemix_vl2.cli.program import execute, say


def main(argv: list[str] | None, prog: str | None, description: str | None, add_arguments, answer) -> int:
    """Run a command of this kind; 1 where questions could not be answered.

    Args:
        answer: takes the flags and returns how many questions could not be answered.
    """

    def run(arguments: argparse.Namespace) -> int:
        return report(answer(arguments))

    return execute(
        argv, prog, description, add_arguments, run, "interrupted; the same command goes on from here"
    )


def report(failed: int) -> int:
    """The exit code; says what to do about questions that failed."""
    if failed:
        say(f"{failed} failed; the same command tries these again")
    return 1 if failed else 0


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """All but those of the input."""
    add = parser.add_argument
    add_model_flags(parser)
    add("--output", required=True, type=Path, metavar="FILE", help="JSONL of the answers")
    add("--image_dir", metavar="FOLDER", help="where paths of pictures start (default: the data's folder)")
    add("--batch_size", type=positive, default=8, metavar="N", help="most questions at a time (default 8)")
    add(
        "--batch_tokens",
        type=positive,
        default=16_384,
        metavar="N",
        help="most positions at a time, prompts and answers (default 16384)",
    )
    add("--max_new_tokens", type=positive, metavar="N", help="longest answer")
    add("--limit", type=positive, metavar="N", help="only the first N")
    add("--restart", action="store_true", help="begin anew: delete what an earlier run has written")


def open_journal(arguments: argparse.Namespace, folder: Path, total: int, **run):
    """The results of this run so far.

    Args:
        folder: of the checkpoint.
        run: what answers depend on, besides the model and the length of answers.

    Raises:
        ValueError: the output belongs to another run.
    """
    from paddlemix_vl2.evaluation.journal import Journal, describe_files

    adapter = describe_files(arguments.adapter_path) if arguments.adapter_path else None
    model = {"model": describe_files(folder), "adapter": adapter, "dtype": check_model_flags(arguments)}
    run = {**run, **model, "max_new_tokens": arguments.max_new_tokens}
    return Journal(arguments.output, run, total, arguments.restart)


def answer(source, journal, processor, arguments: argparse.Namespace, folder: Path) -> list[dict]:
    """Answer what the journal does not have, with a progress bar; nothing is loaded where it has all.

    Returns:
        all results, in order.
    """
    from tqdm import tqdm

    from paddlemix_vl2.evaluation.answering import answer_missing
    from paddlemix_vl2.generation.batched import GenerationLimits

    if journal.missing:
        model = load_model(arguments, folder)
        longest = config_of(folder).language_config.max_sequence_length
        limits = GenerationLimits(
            arguments.max_new_tokens, arguments.batch_size, arguments.batch_tokens, longest
        )
        done = journal.total - len(journal.missing)
        with tqdm(total=journal.total, initial=done, unit="question", file=sys.stderr) as bar:
            for result in answer_missing(model, processor, source, journal, limits):
                if "error" in result:
                    bar.write(f"failed: {result['error']}", file=sys.stderr)
                bar.update()
    return journal.finish()
