import pytest

from paddlemix_vl2.config.checks import check_key

KNOWN = ("learning_rate", "seed")


def test_a_known_key_passes():
    check_key("seed", KNOWN, "a.yaml")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rat", "did you mean 'learning_rate'?"),
        ("xyz", "known keys: learning_rate, seed"),
        (7, "known keys: learning_rate, seed"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_or_with_all(key, hint):
    with pytest.raises(ValueError) as error:
        check_key(key, KNOWN, "a.yaml")
    assert str(error.value) == f"a.yaml: unknown key {key!r} ({hint})"
