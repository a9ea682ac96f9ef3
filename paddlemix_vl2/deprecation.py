"""Names of earlier releases. They keep working for one release, with a warning that names the new one."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """Attributes:
    name: the new name.
    values: old value -> new value, for those that have changed too.
    """

    name: str
    values: Mapping[str, str] = field(default_factory=dict)


_BACKEND = Renamed("backend", {"native": "cpu_kernels", "eager": "paddle"})
# Place of the name -> old name -> new one.
RENAMED: dict[str, dict[str, Renamed]] = {
    "from_pretrained": {"engine": _BACKEND},
    "command line": {"--engine": Renamed("--backend", _BACKEND.values)},
    "recipe": {
        "too_long": Renamed("overlong", {"refuse": "skip", "shorten": "truncate"}),
        "supervise": Renamed("train_on", {"answers": "completions", "text": "all"}),
        "balance_devices": Renamed("expert_groups"),
    },
    "data source": {"format": Renamed("format", {"drawn": "synthetic"})},
}


def rename_arguments(place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under old names, under their new ones.

    Args:
        place: a row of ``RENAMED``.
        values: old name -> value.

    Raises:
        TypeError: a name that never was one.
    """
    renamed = {}
    for name, value in values.items():
        if name not in RENAMED[place]:
            raise TypeError(f"{place}() has no argument {name!r}")
        key, renamed_value = rename(place, name, value)
        renamed[key] = renamed_value
    return renamed


def rename(place: str, name: str, value: Any) -> tuple[str, Any]:
    """The new name and value, with a warning where they differ."""
    entry = RENAMED[place].get(name)
    if entry is None:
        return name, value
    new = entry.values.get(value, value) if isinstance(value, str) else value
    if (entry.name, new) != (name, value):
        old_pair, new_pair = (f"{key} {text}" for key, text in ((name, value), (entry.name, new)))
        warnings.warn(
            f"{place}: {old_pair!r} is now {new_pair!r}; the old name goes with the next release",
            FutureWarning,
            stacklevel=3,
        )
    return entry.name, new
