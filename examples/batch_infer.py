"""Answer every line of a file.

    python examples/batch_infer.py --input examples/data/requests.jsonl --output output/answers.jsonl

writes a line for each line of the input, in its order: ``{"line": 1, "answer": "..."}``, with the line's own
``id`` where it has one. A line of the input is ``{"image": "a.jpg", "question": "..."}``, or
``{"messages": [...]}`` as in training data (docs/data.md) with the user's message as the last. A line that
cannot be answered, not being JSON or naming a picture that is not there, gets an ``error`` instead of an
answer; the others are answered. Interrupted, the same command goes on. Exit code 0: all lines are answered,
1: some are not, 2: nothing could be done.
"""

import argparse
import sys

import batch_cli
import inference_cli


def main(argv: list[str] | None = None) -> int:
    parser = batch_cli.make_parser(__doc__)
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="JSONL: a question or a conversation per line")
    add("--system_prompt", default="", help="text before each conversation without one of its own")
    parser.set_defaults(max_new_tokens=512)
    return batch_cli.exit_code(parser, argv, run)


def run(arguments: argparse.Namespace) -> int:
    """Answer all lines.

    Returns:
        how many lines could not be answered.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2 import DeepseekVLV2Processor
    from paddlemix_vl2.evaluation.journal import digest
    from paddlemix_vl2.evaluation.requests import RequestFile
    from paddlemix_vl2.hub import resolve_checkpoint

    requests = RequestFile(arguments.input, arguments.image_dir, arguments.system_prompt, arguments.limit)
    folder = resolve_checkpoint(arguments.model_path)
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    settings = {"system_prompt": arguments.system_prompt, "input": digest(arguments.input)}
    journal = batch_cli.open_journal(arguments, folder, len(requests), **settings)
    results = batch_cli.answer(requests, journal, processor, arguments, folder)
    failed = sum("error" in result for result in results)
    inference_cli.say(f"{len(results) - failed} of {len(results)} answered: {arguments.output}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
