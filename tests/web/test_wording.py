"""Both languages say everything, with the same values."""

from string import Formatter

import pytest

from paddlemix_vl2.web.wording import EXAMPLES, LANGUAGES, TEXTS, choose_language


def fields(text):
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_every_text_is_there_in_both_languages():
    assert set(TEXTS) == set(EXAMPLES) == set(LANGUAGES.values()) == {"en", "zh"}
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    assert {key: fields(text) for key, text in TEXTS["en"].items()} == {
        key: fields(text) for key, text in TEXTS["zh"].items()
    }


def test_the_examples_are_the_same_in_both_languages_and_their_pictures_exist(picture):
    pictures = [[example.pictures for example in examples] for examples in EXAMPLES.values()]
    assert pictures[0] == pictures[1]
    assert all(picture(name.removesuffix(".png")).is_file() for names in pictures[0] for name in names)


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("zh-TW", "zh"), ("ZH", "zh"), ("en-US,zh;q=0.5", "en"), ("fr", "en"), ("", "en")],
)
def test_the_browser_chooses_the_language(accepted, language):
    assert choose_language(accepted) == language
