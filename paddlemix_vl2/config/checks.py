"""Errors for a wrong key or value: what, where, and the nearest right one."""

import difflib
from collections.abc import Iterable, Sequence


def check_key(key, known: Iterable[str], place) -> None:
    """Accept a key that is known.

    Args:
        place: what the error begins with, such as the file.

    Raises:
        ValueError: it is not; the message names the nearest known key, or all of them where none is near.
    """
    known = list(known)
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    raise ValueError(f"{place}: unknown key {key!r} ({hint})")


def check_choice(key: str, value, choices: Sequence) -> None:
    """Accept one of the choices.

    Raises:
        ValueError: it is none of them; the message lists them, and names the nearest.
    """
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{key} is {value!r}; it must be one of {list(choices)}{hint}")


def check_positive(place: str, config, *keys: str) -> None:
    """Accept a config whose attributes of these names are numbers above 0; ValueError otherwise."""
    for key in keys:
        value = getattr(config, key)
        if not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{place}: {key} is {value!r}; it must be a number above 0")


def require_object(name: str, value) -> dict:
    """``value`` where it is a JSON object; ValueError otherwise."""
    if not isinstance(value, dict):
        raise ValueError(f"{name}: a {type(value).__name__} stands where an object of keys and values must")
    return value
