"""Ask a model that was trained on synthetic pictures every kind of question about new ones, and count.

    python examples/evaluate_demo.py --model_path output/demo --samples_per_kind 50 --output scores.json

prints a table of right answers by kind and language. Each question is asked alone, about a picture that is
not in the training data, and answered greedily. The file of --output holds the table and every answer.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from paddlemix_vl2.cli.arguments import add_model_flags, positive
from paddlemix_vl2.cli.loading import check_model_flags, load_model, open_checkpoint
from paddlemix_vl2.cli.program import execute, say, show


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return execute(argv, prog, description, add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_flags(parser)
    add(
        "--samples_per_kind",
        type=positive,
        default=50,
        metavar="N",
        help="questions of each kind in each language",
    )
    add("--batch_size", type=positive, default=32, metavar="N", help="questions at a time (default 32)")
    add("--split", default="test", choices=["test", "train"], help="which pictures (default test)")
    add(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="only these kinds of questions; other_language is asked only when named",
    )
    add("--output", type=Path, metavar="FILE", help="where to write scores and answers as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Load, ask, print.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2.demo.questions import EXTRA_KINDS, KINDS
    from paddlemix_vl2.demo.scoring import ScoreTable

    kinds = arguments.kinds or KINDS
    known = (*KINDS, *EXTRA_KINDS)
    if unknown := set(kinds) - set(known):
        raise ValueError(f"--kinds: unknown {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    check_model_flags(arguments)
    folder, _, processor = open_checkpoint(arguments.model_path)
    model = load_model(arguments, folder)
    table, answers = ScoreTable(), []
    for answered in ask(model, processor, kinds, arguments):
        table.add(answered.question, answered.right)
        answers.append(answered)
    show(table.to_markdown())
    if arguments.output is not None:
        write(arguments, table, answers)
    return 0


def ask(model, processor, kinds, arguments: argparse.Namespace) -> Iterator:
    """Every answer as it comes, with a progress bar."""
    from tqdm import tqdm

    from paddlemix_vl2.demo.evaluation import evaluate
    from paddlemix_vl2.demo.vocabulary import LANGUAGES

    options = (arguments.split, arguments.samples_per_kind, arguments.batch_size, kinds)
    total = len(kinds) * len(LANGUAGES) * arguments.samples_per_kind
    with tqdm(total=total, unit="question") as bar:
        for batch in evaluate(model, processor, *options):
            bar.update(len(batch))
            yield from batch


def write(arguments: argparse.Namespace, table, answers) -> None:
    """The table and all answers as JSON."""
    from paddlemix_vl2.files import write_object

    rows = [
        {
            "kind": question.kind,
            "language": question.language,
            "prompt": question.prompt,
            "expected": question.answer,
            "answer": answer,
            "right": right,
        }
        for question, answer, right in answers
    ]
    flags = {"split": arguments.split, "samples_per_kind": arguments.samples_per_kind}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_object(arguments.output, {**flags, **table.to_dict(), "answers": rows})
    say(f"written: {arguments.output}")
