"""Ask a model that was trained on drawn pictures every kind of question about new ones, and count.

    python examples/evaluate_demo.py --model_path output/demo --samples_per_kind 50 --output scores.json

prints a table of right answers by kind and language. Each question is asked alone, about a picture that is
not in the training data, and answered greedily. The file of --output holds the table and every answer.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import inference_cli


def main(argv: list[str] | None = None) -> int:
    try:
        run(make_parser().parse_args(argv))
    except (ValueError, OSError) as error:
        inference_cli.say("error: " + " ".join(str(error).split()))
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = inference_cli.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, positive = parser.add_argument, inference_cli.positive
    inference_cli.add_model_flags(parser)
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
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Load, ask, print.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
        from paddlemix_vl2 import DeepseekVLV2Processor, device
        from paddlemix_vl2.demo.questions import EXTRA_KINDS, KINDS
        from paddlemix_vl2.demo.scoring import ScoreTable
    kinds = arguments.kinds or KINDS
    known = (*KINDS, *EXTRA_KINDS)
    if unknown := set(kinds) - set(known):
        raise ValueError(f"--kinds: unknown {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    device.set_device(arguments.device)
    inference_cli.check_adapter(arguments.adapter_path)
    processor = DeepseekVLV2Processor.from_pretrained(arguments.model_path)
    model = inference_cli.load_model(arguments, arguments.model_path)
    table, answers = ScoreTable(), []
    for answered in ask(model, processor, kinds, arguments):
        table.add(answered.question, answered.right)
        answers.append(answered)
    print(table.to_markdown())
    if arguments.output is not None:
        write(arguments, table, answers)


def ask(model, processor, kinds, arguments: argparse.Namespace):
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
    text = json.dumps({**flags, **table.to_dict(), "answers": rows}, ensure_ascii=False, indent=1)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    inference_cli.say(f"written: {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
