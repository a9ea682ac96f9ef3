"""What a checkpoint keeps of its data, so that training does not resume with other data unnoticed."""

from collections.abc import Sequence
from pathlib import Path

from paddlemix_vl2.data.sources import SYNTHETIC, Source
from paddlemix_vl2.deprecation import rename


def data_fingerprint(sources: Sequence[Source], seed: int) -> dict:
    """Seed and, for every source, name, format, file name (not its folder), weight and number of samples.

    Plain values only, equal to themselves after a round through JSON.
    """
    return {"seed": seed, "sources": [_describe(source) for source in sources]}


def check_fingerprint(old: dict, new: dict) -> None:
    """Compare the fingerprint of a checkpoint with that of the run that resumes from it.

    Raises:
        ValueError: they differ; the message names the first field that does, and both values.
    """
    _compare("seed", old["seed"], new["seed"])
    _compare("the number of sources", len(old["sources"]), len(new["sources"]))
    for index, (before, now) in enumerate(zip(old["sources"], new["sources"], strict=True)):
        for field in now:
            was = rename("data source", field, before.get(field))[1]
            _compare(f"{field} of source {index} ({now['name']})", was, now[field])


def _describe(source: Source) -> dict:
    spec = source.spec
    return {
        "name": spec.name,
        "format": spec.format,
        "path": f"{spec.task}/{spec.split}" if spec.format == SYNTHETIC else Path(spec.path).name,
        "weight": float(spec.weight),
        "size": len(source),
    }


def _compare(field: str, before, now) -> None:
    if before != now:
        raise ValueError(
            f"resumed with another data mixture: {field} was {before!r} and is now {now!r}; "
            "go on with the same data, or begin a new run from the checkpoint's weights"
        )
