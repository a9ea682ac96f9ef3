"""A command as a program: what it says, its exit code, one line for what the user has to change.

Results go to the standard output, everything else to the standard error. Exit codes: 0, 1 where a part could
not be done (the command says what), 2 after an error, 130 after Ctrl-C.
"""

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.processes import leave_together

# The text of a warning of :mod:`paddlemix_vl2.deprecation`, for any name.
_RENAMED = r".* is now .*; the old name goes with the next release"
# Packages that an extra of setup.py brings; all others come with the package itself.
_EXTRAS = {
    "paddle": ("cpu", "gpu"),
    "paddlenlp": ("cpu,train",),
    "matplotlib": ("cpu,train",),
    "gradio": ("cpu,web",),
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client", "httpx"), ("cpu,serve",)),
}
_CORE = ("numpy", "PIL", "yaml", "safetensors", "tokenizers", "tqdm", "huggingface_hub")


def execute(
    argv: list[str] | None,
    prog: str | None,
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    interrupted: str = "interrupted",
    intermixed: bool = False,
) -> int:
    """Parse the flags and run.

    Args:
        argv: None: those of this program, which then ends with the command; of several processes each ends
            here.
        prog, description, intermixed: of :class:`OneLineParser`.
        run: returns the exit code.
        interrupted: what is said after Ctrl-C.
    """
    parser = OneLineParser(description, prog, intermixed)
    add_arguments(parser)
    code = exit_code(lambda: run(parser.parse(argv)), interrupted)
    if argv is None:
        leave_together(code)
    return code


def exit_code(run: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """What ``run`` returns (0 for nothing); 2 or 130, after one line, where it raised what a user has to
    change."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows what it can
    with plain_messages():
        try:
            return run() or 0
        except ModuleNotFoundError as error:
            if not (error.name in _EXTRAS or error.name in _CORE):
                raise
            return fail(f"{error.name} is not installed; {how_to_install(error.name)}")
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            return fail(interrupted, code=130)


@contextlib.contextmanager
def plain_messages() -> Iterator[None]:
    """Show names that have changed and what this package logs, a line each, and no other warning: importing
    Paddle warns of compilers that are not needed here."""
    logger = logging.getLogger("paddlemix_vl2")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.StreamHandler(sys.stderr)], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", _RENAMED, FutureWarning)
            warnings.showwarning = lambda message, *_: say(f"warning: {one_line(message)}")
            yield
    finally:
        logger.handlers, logger.propagate = before


def how_to_install(package: str) -> str:
    """The commands that bring a package.

    >>> how_to_install("gradio")
    'in the repository run: pip install -e ".[cpu,web]"; elsewhere: pip install "paddlemix-vl2[web]"'
    """
    extras = _EXTRAS.get(package)
    if extras is None:
        return 'in the repository run: pip install -e "."; elsewhere: pip install paddlemix-vl2'
    here = " or ".join(f'".[{extra}]"' for extra in extras)
    elsewhere = " or ".join(f'"paddlemix-vl2[{extra.removeprefix("cpu,")}]"' for extra in extras)
    return f"in the repository run: pip install -e {here}; elsewhere: pip install {elsewhere}"


def fail(error: object, code: int = 2) -> int:
    """Say what is wrong, in one line; the exit code."""
    say(f"error: {one_line(error)}")
    return code


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def say(message: str) -> None:
    """A line on the standard error."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def show(text: str) -> None:
    """A result: lines on the standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
