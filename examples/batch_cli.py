"""What the command lines that answer whole files share: flags, the run that is gone on with, the model."""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import inference_cli


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of both; the caller adds those of its files."""
    parser = inference_cli.OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, positive = parser.add_argument, inference_cli.positive
    inference_cli.add_model_flags(parser)
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
    return parser


def exit_code(parser: argparse.ArgumentParser, argv: list[str] | None, run: Callable) -> int:
    """Run with the parsed flags: 0, 1 where questions could not be answered, 2 after an error.

    Args:
        run: takes the flags and returns how many questions could not be answered.
    """
    try:
        arguments = parser.parse_args(argv)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
            import paddlemix_vl2.evaluation.runs
            import paddlemix_vl2.models.engine  # noqa: F401
        failed = run(arguments)
    except (ValueError, OSError) as error:
        inference_cli.say("error: " + " ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        inference_cli.say("error: interrupted; the same command goes on from here")
        return 130
    if failed:
        inference_cli.say(f"{failed} failed; the same command tries these again")
    return 1 if failed else 0


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
    model = {"model": describe_files(folder), "adapter": adapter, "dtype": check_model(arguments)}
    run = {**run, **model, "max_new_tokens": arguments.max_new_tokens}
    return Journal(arguments.output, run, total, arguments.restart)


def check_model(arguments: argparse.Namespace) -> str:
    """Choose the device and complain of flags before the model is loaded; the dtype of its weights."""
    from paddlemix_vl2 import device

    device.set_device(arguments.device)
    inference_cli.check_adapter(arguments.adapter_path)
    return inference_cli.check_precision(arguments)


def answer(source, journal, processor, arguments: argparse.Namespace, folder: Path) -> list[dict]:
    """Answer what the journal does not have, with a progress bar; nothing is loaded where it has all.

    Returns:
        all results, in order.
    """
    from tqdm import tqdm

    from paddlemix_vl2.configuration import DeepseekVLV2Config
    from paddlemix_vl2.evaluation.runs import answer_missing
    from paddlemix_vl2.generation.batched import BatchLimits

    if journal.missing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
            model = inference_cli.load_model(arguments, folder)
        longest = DeepseekVLV2Config.from_json(folder).language_config.max_sequence_length
        limits = BatchLimits(arguments.max_new_tokens, arguments.batch_size, arguments.batch_tokens, longest)
        done = journal.total - len(journal.missing)
        with tqdm(total=journal.total, initial=done, unit="question", file=sys.stderr) as bar:
            for result in answer_missing(model, processor, source, journal, limits):
                if "error" in result:
                    bar.write(f"failed: {result['error']}", file=sys.stderr)
                bar.update()
    return journal.finish()
