"""What the tools' command lines share: what is wrong in one line, and the exit code."""

import argparse
import sys
from collections.abc import Callable


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage text in front."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the flags")


def exit_code(run: Callable[[], int | None]) -> int:
    """What ``run`` returns (0 for nothing); 2, after one line, where it raised what a user has to change."""
    try:
        return run() or 0
    except (ValueError, OSError) as error:
        say("error: " + " ".join(str(error).split()))
        return 2


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
