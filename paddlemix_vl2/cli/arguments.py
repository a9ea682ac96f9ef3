"""The one parser of all commands, and the flags that several of them have."""

import argparse
from pathlib import Path

from paddlemix_vl2.deprecation import rename
from paddlemix_vl2.device import BACKEND_CHOICES, DTYPE_CHOICES

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
DEMO_CHECKPOINT = Path(__file__).resolve().parents[1] / "demo" / "checkpoint"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage text in front.

    Args:
        description: shown by ``--help`` as it is written.
        prog: how the command is called; the script's name where absent.
        intermixed: take positional arguments also behind flags.
    """

    def __init__(self, description: str | None, prog: str | None = None, intermixed: bool = False):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._intermixed = intermixed

    def parse(self, argv: list[str] | None) -> argparse.Namespace:
        """The parsed flags.

        Raises:
            ValueError: a flag is unknown, missing or has a wrong value.
        """
        return self.parse_intermixed_args(argv) if self._intermixed else self.parse_args(argv)

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the flags")


def positive(text: str) -> int:
    """A flag's value that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model answers, and on what it runs."""
    add = parser.add_argument
    add(
        "--model_path",
        default=str(DEMO_CHECKPOINT),
        help="checkpoint folder, or a hub name like deepseek-ai/deepseek-vl2-tiny (default: the small model "
        "that comes with the package)",
    )
    add("--adapter_path", metavar="FOLDER", help="LoRA adapter of that model, to answer with")
    add("--dtype", default="auto", choices=DTYPE_CHOICES, help="of the weights (default auto)")
    add_backend_flag(parser)
    add("--device", default="auto", help="auto, cpu, gpu or gpu:N")


def add_backend_flag(parser: argparse.ArgumentParser) -> None:
    """What computes, also under its name of an earlier release."""
    add = parser.add_argument
    help_ = "auto, Paddle's operators, or the CPU kernels"
    add("--backend", default="auto", choices=BACKEND_CHOICES, help=help_)
    add("--engine", dest="backend", choices=("auto", "eager", "native"), action=_Renamed)


class _Renamed(argparse.Action):
    """A flag of an earlier release: sets the one that replaces it, with a warning."""

    def __init__(self, option_strings, dest, choices):
        super().__init__(
            option_strings, dest, choices=choices, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )

    def __call__(self, parser, namespace, value, option_string=None):
        _, new = rename("command line", option_string, value)
        setattr(namespace, self.dest, new)


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """How a prompt is made and read."""
    add = parser.add_argument
    add("--system_prompt", default="", help="text before the conversation (default: none)")
    add("--max_new_tokens", type=positive, default=512, metavar="N", help="longest answer (default 512)")
    add_chunk_size(parser)


def add_chunk_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chunk_size",
        type=positive,
        metavar="N",
        help="tokens of the prompt to read at a time (default: all)",
    )


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How a token is chosen; :func:`sampling_options` reads them."""
    sampling = parser.add_argument_group("sampling", "off, unless one of the first three is given")
    add = sampling.add_argument
    add("--temperature", type=float, metavar="T", help="0: take the best token; published example: 0.4")
    add("--top_p", type=float, metavar="P", help="sample from the likeliest tokens that reach P together")
    add("--top_k", type=int, metavar="K", help="sample from the K likeliest tokens")
    add("--repetition_penalty", type=float, default=1.0, metavar="R", help="above 1: repeat less (default 1)")
    add("--seed", type=int, help="makes sampling reproducible")


def sampling_options(arguments: argparse.Namespace) -> dict:
    """The sampling arguments of ``generate``: greedy, unless a flag asks for sampling.

    Raises:
        ValueError: a value is out of its range.
    """
    from paddlemix_vl2.generation.sampling import SamplingParameters

    return vars(SamplingParameters.asked_for(**{name: getattr(arguments, name) for name in SAMPLING}))
