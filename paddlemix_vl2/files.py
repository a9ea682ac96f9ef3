"""Files as this package reads and writes them: JSON objects, and files and folders that are whole or not
there."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

# What a training run logs, one JSON object per line.
METRICS_FILE = "metrics.jsonl"

# Behind the name of a file that several processes write together; see :func:`shared_temporary`.
TEMPORARY = ".tmp"
# Formats of pictures by extension, as Pillow names them.
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


# ---- JSON ----


def parse_object(text: str | bytes) -> dict:
    """The JSON object that a text is; of bytes, with or without a byte order mark.

    Raises:
        ValueError: it is not UTF-8, not JSON or not an object. The message does not name the file.
    """
    try:
        values = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid JSON (not UTF-8 text: {error})") from None
    # ValueError: also a number with too many digits. RecursionError: nested a thousand times.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    return check_object(values)


def check_object(value: object) -> dict:
    """The value, if it is a JSON object.

    Raises:
        ValueError: it is not. The message does not name the file.
    """
    if not isinstance(value, dict):
        raise ValueError(f"holds a JSON {type(value).__name__}; it must be an object")
    return value


def read_object(file: Path) -> dict:
    """The JSON object in ``file``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, or not an object.
    """
    try:
        return parse_object(file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file; a checkpoint folder holds {file.name}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def format_object(values: dict) -> str:
    """The text of a JSON file."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def write_object(file: Path, values: dict) -> None:
    """Write ``values`` as JSON; as :func:`replace_file`."""
    write_text(file, format_object(values))


# ---- whole or not there ----


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text; as :func:`replace_file`."""
    with replace_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """A temporary name beside ``file`` to write to, which becomes ``file`` when the block ends: readers see
    the old file or the whole new one. Where the block raises, nothing is left of it.

    Of several in one ``with``, the last one gets its name first, and none does before all are written.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def shared_temporary(file: Path) -> Path:
    """The temporary name of a file that one process writes and another renames by :func:`finish_file`."""
    return file.with_name(file.name + TEMPORARY)


def finish_file(file: Path) -> None:
    """Give a file that is whole under its :func:`shared_temporary` its name."""
    os.replace(shared_temporary(file), file)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes ``folder`` when the block ends. Where the block raises,
    nothing is left of it, and an older folder stays as it was."""
    temporary = begin_folder(folder)
    try:
        yield temporary
        finish_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_folder(folder: Path) -> Path:
    """Where ``folder`` is written until it is whole."""
    return folder.with_name(f".{folder.name}.partial")


def begin_folder(folder: Path) -> Path:
    """Make an empty :func:`temporary_folder`; what an interrupted run has left there is deleted."""
    temporary = temporary_folder(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def finish_folder(folder: Path) -> None:
    """Give a :func:`temporary_folder` that is whole its name; one that has it already is replaced."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary_folder(folder).rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# ---- pictures ----


def picture_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format of a file's extension.

    Raises:
        ValueError: the extension is not known.
    """
    extension = Path(path).suffix.lower()
    if extension not in _FORMATS:
        raise ValueError(
            f"{path}: cannot write {extension or 'a file without extension'}; use {', '.join(_FORMATS)}"
        )
    return _FORMATS[extension]


def check_output(path: str | os.PathLike) -> None:
    """Say now what would prevent :func:`save_picture` later.

    Raises:
        ValueError: the extension is not known, the path is a folder, or no file can be made there.
    """
    picture_format(path)
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "cannot be written to" if above.is_dir() else "is not a folder"
        raise ValueError(f"{path}: cannot be made, as {above} {reason}")


def save_picture(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture in the format of its extension; folders on the way are made. As :func:`replace_file`.

    Raises:
        ValueError: the extension is not known, or the format cannot hold the picture.
        OSError: the file cannot be written.
    """
    path = Path(path)
    file_format = picture_format(path)
    picture = image.convert("RGB") if file_format in ("JPEG", "BMP") else image
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        try:
            picture.save(temporary, format=file_format, quality=95)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk's fault, not the picture's
                raise
            raise ValueError(f"{path}: cannot be written as {file_format}: {error}") from None
