"""The command ``paddlemix-vl2``.

A command is a module with ``add_arguments(parser)``, ``run(arguments)`` and ``main(argv)``; the scripts of
examples/ call the same functions. Nothing heavy is imported before the flags are parsed and the pictures are
opened.

program     results, messages, exit codes, one line for an error
arguments   the parser, and flags that several commands have
loading     the model that the flags name
answering   a question -> the model's input; its answer -> text and boxes
resumable   files of questions: an interrupted run resumes
processes   several processes that answer together
"""

import difflib
import importlib
import sys

from paddlemix_vl2.cli.processes import leave_together
from paddlemix_vl2.cli.program import exit_code, show

# Command -> its module, and what it does.
COMMANDS = {
    "infer": ("inference", "a question about pictures -> the answer, as it is generated"),
    "chat": ("chat", "a conversation about pictures in the terminal"),
    "batch": ("batch", "a file of questions -> a file of answers"),
    "evaluate": ("evaluate", "a benchmark's questions -> its score"),
    "train": ("train", "a recipe (YAML) -> a model, or an adapter"),
    "merge": ("merge", "a model and its adapter -> a model"),
    "serve": ("serve", "a model over HTTP, with OpenAI's chat completions"),
    "web": ("web", "a page in the browser to talk with a model"),
    "inspect": ("inspect", "what a checkpoint holds, and where it differs from its config"),
    "estimate": ("estimate", "the memory that answering takes, from the config alone"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code.

    Args:
        argv: the command and its flags; None: those of this program, which then ends with the command.
    """
    name, *flags = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        return exit_code(lambda: show(_list_commands()))
    if name not in COMMANDS:
        return exit_code(lambda: _refuse(name))
    module = importlib.import_module(f"{__name__}.{COMMANDS[name][0]}")
    code = module.main(flags, f"paddlemix-vl2 {name}")
    if argv is None:
        leave_together(code)
    return code


def _list_commands() -> str:
    lines = [f"  {name:9} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    usage = "usage: paddlemix-vl2 COMMAND [flags]; the flags: paddlemix-vl2 COMMAND --help"
    return "\n".join([usage, "", *lines])


def _refuse(name: str) -> None:
    names = f"paddlemix-vl2 has {', '.join(COMMANDS)}"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    if near:
        raise ValueError(f"unknown command {name!r} (did you mean {near[0]!r}?); --help lists the commands")
    raise ValueError(f"unknown command {name!r}; {names}" if name else f"no command; {names}")
