"""Exit codes, the error line and the warnings that are shown."""

import logging
import warnings

import pytest

from paddlemix_vl2.cli import program
from paddlemix_vl2.deprecation import rename


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (raising(ValueError("a\n  b\tc")), 2, "error: a b c\n"),
        (raising(FileNotFoundError("x: no such file")), 2, "error: x: no such file\n"),
        (raising(KeyboardInterrupt()), 130, "error: interrupted\n"),
        (
            raising(ModuleNotFoundError("No module named 'tqdm'", name="tqdm")),
            2,
            'error: tqdm is not installed; in the repository run: pip install -e "."; elsewhere: '
            "pip install paddlemix-vl2\n",
        ),
    ],
)
def test_the_exit_code_and_the_line(capsys, run, code, said):
    assert program.exit_code(run) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", said)


@pytest.mark.parametrize("error", [ModuleNotFoundError("x", name="paddlemix_vl2.x"), RuntimeError("x")])
def test_our_own_mistakes_keep_their_traceback(error):
    with pytest.raises(type(error)):
        program.exit_code(raising(error))


def test_an_interrupted_command_says_how_to_go_on(capsys):
    assert program.exit_code(raising(KeyboardInterrupt()), "interrupted; again") == 130
    assert capsys.readouterr().err == "error: interrupted; again\n"


def test_a_renamed_key_is_shown_in_one_line_and_other_warnings_are_not(capsys):
    def run():
        warnings.warn("No ccache found", UserWarning, stacklevel=1)
        warnings.warn("something else will change", FutureWarning, stacklevel=1)
        rename("recipe", "balance_devices", 2)
        rename("recipe", "balance_devices", 2)

    assert program.exit_code(run) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith("warning: recipe: 'balance_devices 2' is now 'expert_groups 2'; ")


def test_what_the_package_logs_is_a_plain_line(capsys):
    logger = logging.getLogger("paddlemix_vl2.part")
    assert program.exit_code(lambda: logger.warning("without the kernels")) == 0
    assert capsys.readouterr().err == "without the kernels\n"


def test_the_filter_ends_with_the_command():
    program.exit_code(lambda: 0)
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_results_and_messages_go_to_their_streams(capsys):
    program.show("result")
    program.say("message")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "message\n")
