"""Keys of settings: one answer to an unknown one, wherever it stands."""

import difflib
from collections.abc import Iterable


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
