"""Answer every line of a file.

    paddlemix-vl2 batch --input requests.jsonl --output answers.jsonl

writes a line for each line of the input, in its order: {"line": 1, "answer": "..."}, with the line's own "id"
where it has one. A line of the input is {"image": "a.jpg", "question": "..."}, or {"messages": [...]} as in
training data (docs/data.md) with the user's message as the last. A line that cannot be answered, not being
JSON or naming a picture that is not there, gets an "error" instead of an answer; the others are answered.
After an interruption the same command resumes. Exit code 0: all lines are answered, 1: some are not, 2:
nothing could be done.
"""

import argparse

from paddlemix_vl2.cli import resumable
from paddlemix_vl2.cli.program import say


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return resumable.main(argv, prog, description, add_arguments, answer)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    resumable.add_common_flags(parser)
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="JSONL: a question or a conversation per line")
    add("--system_prompt", default="", help="text before each conversation without one of its own")
    parser.set_defaults(max_new_tokens=512)


def run(arguments: argparse.Namespace) -> int:
    return resumable.report(answer(arguments))


def answer(arguments: argparse.Namespace) -> int:
    """Answer all lines.

    Returns:
        how many lines could not be answered.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2.auto import AutoProcessor
    from paddlemix_vl2.evaluation.journal import digest
    from paddlemix_vl2.evaluation.requests import RequestFile
    from paddlemix_vl2.hub import resolve_checkpoint

    requests = RequestFile(arguments.input, arguments.image_dir, arguments.system_prompt, arguments.limit)
    folder = resolve_checkpoint(arguments.model_path)
    processor = AutoProcessor.from_pretrained(folder)
    settings = {"system_prompt": arguments.system_prompt, "input": digest(arguments.input)}
    journal = resumable.open_journal(arguments, folder, len(requests), **settings)
    results = resumable.answer(requests, journal, processor, arguments, folder)
    failed = sum("error" in result for result in results)
    say(f"{len(results) - failed} of {len(results)} answered: {arguments.output}")
    return failed
