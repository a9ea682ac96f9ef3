"""The command of training: what it prints, and mistakes of its flags."""

import re

import pytest

from paddlemix_vl2.cli import train


@pytest.fixture
def recipe(small_recipe, tmp_path):
    import yaml

    file = tmp_path / "recipe.yaml"
    values = {**small_recipe, "output_dir": str(tmp_path / "output")}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(file)


def test_the_plan_is_printed_and_nothing_is_written(recipe, tmp_path, capsys):
    assert train.main([recipe, "--dry_run", "max_steps=7", "--processes", "4"]) == 0
    assert "Steps: 7" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_model_is_trained(recipe, tmp_path, capsys):
    assert train.main([recipe, "max_steps=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"The trained model is in {tmp_path / 'output'}"
    assert (tmp_path / "output" / "config.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes", "2"], "--processes belongs to --dry_run and is at least 1"),
        (["--dry_run", "--processes", "0"], "--processes belongs to --dry_run and is at least 1"),
        (["max_stesp=3"], "unknown key 'max_stesp' (did you mean 'max_steps'?)"),
        (["--dryrun"], "unrecognized arguments: --dryrun"),
    ],
)
def test_a_mistake_is_one_line(recipe, capsys, flags, message):
    assert train.main([recipe, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_an_old_key_is_taken_and_says_its_new_name(recipe, capsys):
    assert train.main([recipe, "--dry_run", "too_long=shorten"]) == 0
    warned = re.findall(r"^warning: .*", capsys.readouterr().err, re.MULTILINE)
    assert sum("'too_long shorten' is now 'overlong truncate'" in line for line in warned) == 1
