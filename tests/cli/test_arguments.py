"""Flags that commands share, and those of earlier releases."""

import pytest

from paddlemix_vl2.cli import arguments, estimate, program
from paddlemix_vl2.device import BACKEND_CHOICES, DTYPE_CHOICES, DTYPES, KERNEL_DTYPES


@pytest.fixture
def parse(capsys):
    """Flags -> exit code, the parsed flags and the lines on the standard error."""

    def run(*flags):
        parser, seen = arguments.OneLineParser(""), []
        arguments.add_model_flags(parser)
        arguments.add_prompt_flags(parser)
        arguments.add_sampling_flags(parser)
        capsys.readouterr()
        code = program.exit_code(lambda: seen.append(parser.parse([str(flag) for flag in flags])))
        return code, seen[0] if seen else None, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(("old", "new"), [("eager", "paddle"), ("native", "cpu_kernels"), ("auto", "auto")])
def test_the_old_flag_is_taken_and_says_its_new_name(parse, old, new):
    code, flags, lines = parse("--engine", old)
    assert (code, flags.backend) == (0, new) and "engine" not in vars(flags)
    assert lines == [
        f"warning: command line: '--engine {old}' is now '--backend {new}'; the old name goes with the next "
        "release"
    ]


def test_the_new_flag_warns_of_nothing(parse):
    code, flags, lines = parse("--backend", "paddle")
    assert (code, flags.backend, lines) == (0, "paddle", [])
    assert parse()[1].backend == "auto"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "fast"], "argument --engine: invalid choice: 'fast'"),
        (["--backend", "native"], "argument --backend: invalid choice: 'native'"),
        (["--max_new_tokens", "1.5"], "argument --max_new_tokens: '1.5' is not a whole number from 1 up"),
        (["--max_new", "5"], "unrecognized arguments: --max_new 5"),
        (["--seed"], "argument --seed: expected one argument"),
    ],
)
def test_a_mistake_is_one_line(parse, flags, message):
    code, _, lines = parse(*flags)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: {message}") and lines[0].endswith("; --help lists the flags")


def test_the_choices_are_those_of_the_models(parse):
    assert BACKEND_CHOICES == ("auto", "paddle", "cpu_kernels")
    assert set(DTYPE_CHOICES) == {"auto", *DTYPES, *KERNEL_DTYPES}
    assert all(parse("--backend", backend)[1].backend == backend for backend in BACKEND_CHOICES)
    assert all(parse("--dtype", dtype)[1].dtype == dtype for dtype in DTYPE_CHOICES)


def test_sampling_begins_with_its_first_flag(parse):
    assert arguments.sampling_options(parse("--seed", 3)[1])["do_sample"] is False
    asked = arguments.sampling_options(parse("--temperature", 0.5, "--top_k", 4)[1])
    assert (asked["do_sample"], asked["temperature"], asked["top_k"], asked["top_p"]) == (True, 0.5, 4, 1.0)


def test_defaults_of_a_command_are_not_shared():
    parser = arguments.OneLineParser("")
    estimate.add_arguments(parser)
    assert parser.parse([]).models == estimate.NAMES
