"""Reading and writing the small JSON files of a checkpoint folder."""

import json
import os
from pathlib import Path


def read_object(file: Path) -> dict:
    """The JSON object in ``file``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, or not an object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file; a checkpoint folder holds {file.name}") from None
    # Bytes that are no UTF-8 raise UnicodeDecodeError, which is a ValueError like JSONDecodeError.
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds a JSON {type(values).__name__}; it must be an object")
    return values


def write_object(file: Path, values: dict) -> None:
    """Write ``values`` as JSON; readers see the old file or the whole new one."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
