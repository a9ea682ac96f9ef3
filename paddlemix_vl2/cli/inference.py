"""Ask a question about pictures.

    paddlemix-vl2 infer --image_file a.jpg --question "What is in this picture?"
    paddlemix-vl2 infer --image_files a.jpg b.jpg --question "What is different between the two pictures?"
    paddlemix-vl2 infer --image_file a.jpg --output boxes.png \\
        --question "Locate <|ref|>the red circle<|/ref|> in the given image."

The answer appears on the standard output as it is generated, everything else on the standard error. <image>
in the question says where each picture belongs; without it they come first, one after the other. --output
saves the picture with the boxes that the answer names.
"""

import argparse
from collections.abc import Callable

from paddlemix_vl2.cli import processes
from paddlemix_vl2.cli.answering import make_batch, show_boxes, stream_answer
from paddlemix_vl2.cli.arguments import (
    add_model_flags,
    add_prompt_flags,
    add_sampling_flags,
    positive,
    sampling_options,
)
from paddlemix_vl2.cli.loading import announce, check_model_flags, load_model, open_checkpoint
from paddlemix_vl2.cli.program import execute, say

NUMBERED = ("image_file_1", "image_file_2", "image_file_3")


def main(
    argv: list[str] | None = None,
    prog: str | None = None,
    description: str | None = __doc__,
    add_pictures: Callable[[argparse.ArgumentParser], None] | None = None,
    **defaults,
) -> int:
    """Answer one question.

    Args:
        add_pictures: adds the flags for pictures; those of ``infer`` where absent.
        defaults: of flags, in place of this command's.
    """

    def add_flags(parser: argparse.ArgumentParser) -> None:
        add_question_flags(parser)
        (add_pictures or add_any_pictures)(parser)
        parser.set_defaults(**defaults)

    return execute(argv, prog, description, add_flags, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_question_flags(parser)
    add_any_pictures(parser)


def add_question_flags(parser: argparse.ArgumentParser) -> None:
    """Everything but pictures."""
    add = parser.add_argument
    add_model_flags(parser)
    add("--question", required=True, help="may hold <image> where a picture belongs; in front otherwise")
    add_prompt_flags(parser)
    add("--output", metavar="FILE", help="where to save the picture with the boxes that the answer names")
    add(
        "--expert_parallel_degree",
        type=positive,
        default=1,
        metavar="N",
        help="processes of paddle.distributed.launch that share the experts (default 1); see docs/scaling.md",
    )
    add_sampling_flags(parser)


def add_any_pictures(parser: argparse.ArgumentParser) -> None:
    """One picture, several or none."""
    parser.add_argument("--image_file", metavar="FILE", help="the picture")
    add_listed_pictures(parser)


def add_one_picture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image_file", required=True, metavar="FILE", help="the picture")


def add_several_pictures(parser: argparse.ArgumentParser) -> None:
    """At least one picture."""
    add_listed_pictures(parser)
    for name in NUMBERED:
        parser.add_argument(f"--{name}", metavar="FILE", help="one picture; behind those of --image_files")
    parser.set_defaults(needs_picture=True)


def add_listed_pictures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image_files", nargs="+", default=[], metavar="FILE", help="the pictures, any number")
    add("--draw_on", type=positive, metavar="N", help="picture for the boxes, from 1 (default: the last)")


def list_pictures(arguments: argparse.Namespace) -> list[str]:
    """The picture files that the flags name, in the order of the question.

    Raises:
        ValueError: there is none, where one is needed.
    """
    single = [getattr(arguments, "image_file", None)]
    numbered = [getattr(arguments, name, None) for name in NUMBERED]
    named = [*single, *getattr(arguments, "image_files", []), *numbered]
    pictures = [file for file in named if file is not None]
    if not pictures and getattr(arguments, "needs_picture", False):
        raise ValueError("no picture; give --image_files FILE FILE ... or --image_file_1 FILE and so on")
    return pictures


def run(arguments: argparse.Namespace) -> int:
    """Answer; the first mistake of the user first."""
    answer(arguments, list_pictures(arguments))
    return 0


def answer(arguments: argparse.Namespace, files: list[str]) -> None:
    """Answer the question about the pictures in these files.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    pictures = open_pictures(arguments, files)
    dtype = check_flags(arguments)
    folder, config, processor = open_checkpoint(arguments.model_path)
    batch = make_batch(arguments, processor, pictures, config.language_config.max_sequence_length)
    with processes.together(arguments, config.language_config.n_routed_experts) as dispatcher:
        announce(folder, dtype)
        if dispatcher:
            say(f"experts over {arguments.expert_parallel_degree} processes, with the backend paddle")
        model = load_model(arguments, folder, dispatcher)
        say(f"reading {batch['input_ids'].shape[1]} tokens, {len(pictures)} picture(s) among them")
        text = stream_answer(model, batch, processor.tokenizer, arguments)
        number = getattr(arguments, "draw_on", None) or len(pictures)
        show_boxes(text, pictures[number - 1] if pictures else None, arguments.output)


def open_pictures(arguments: argparse.Namespace, files: list[str]) -> list:
    """What can be said without Paddle: the question, the pictures, the place of the output.

    Returns:
        the pictures, upright, as boxes in the answer refer to them.
    """
    from paddlemix_vl2.files import check_output
    from paddlemix_vl2.processing.pictures import open_picture

    if not arguments.question.strip():
        raise ValueError("--question is empty")
    number = getattr(arguments, "draw_on", None)
    if number is not None and number > len(files):
        raise ValueError(f"--draw_on {number}: there are only {len(files)} picture(s)")
    pictures = [open_picture(file) for file in files]
    if arguments.output is not None:
        check_output(arguments.output)
        if not files:
            raise ValueError(f"--output {arguments.output}: boxes are drawn on a picture; name one")
    return pictures


def check_flags(arguments: argparse.Namespace) -> str:
    """Complain of flags now, not when the model is loaded or has answered; the dtype of the weights."""
    processes.check_flags(arguments)
    dtype = check_model_flags(arguments)
    sampling_options(arguments)
    return dtype
