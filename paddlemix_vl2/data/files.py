"""Where in a file each sample stands, so that one is read without the others in memory."""

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

# Scanning is at 20 to 100 MB/s: smaller files are done before a bar is read.
_BYTES_WORTH_A_BAR = 64_000_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")

Check = Callable[[dict], object]


class IndexedFile:
    """A JSONL file, or a file with one JSON array of objects, scanned once and then read entry by entry.

    Blank lines are passed over. Only positions are kept: 24 bytes per entry.

    Args:
        check: called with every entry; its ``ValueError`` is raised with the entry's place in front.
        progress: whether to show a bar on standard error while a large file is scanned.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an entry is not JSON, not an object, or refused by ``check``; or there is none.
    """

    def __init__(self, path: str | os.PathLike, check: Check, progress: bool = True):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        size = self.path.stat().st_size
        self.is_array = _first_byte(self.path) == b"["
        scan = _scan_array if self.is_array else _scan_lines
        positions = array("q")  # 8 bytes each; a list of tuples would take ten times that
        with tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc=self.path.name,
            disable=not progress or size < _BYTES_WORTH_A_BAR,
        ) as bar:
            for start, end, number, entry in scan(self.path):
                place = self._name(number)
                if not isinstance(entry, dict):
                    raise ValueError(f"{place}: holds a JSON {type(entry).__name__}; it must be an object")
                try:
                    check(entry)
                except ValueError as error:
                    raise ValueError(f"{place}: {error}") from None
                positions.extend((start, end, number))
                bar.update(end - bar.n)
        if not positions:
            raise ValueError(f"{self.path}: holds no samples")
        # [samples, 3]: first byte, byte behind the last, number of the line or entry
        self._positions = np.array(positions, dtype=np.int64).reshape(-1, 3)
        self._file = None

    def __len__(self) -> int:
        return len(self._positions)

    def place(self, index: int) -> str:
        """``file:line``, or ``file: entry 12`` (counted from 0) in a JSON array."""
        return self._name(int(self._positions[index, 2]))

    def read(self, index: int) -> dict:
        """Entry ``index``.

        Raises:
            ValueError: it is not what it was when the file was scanned.
            OSError: the file cannot be read any more.
        """
        start, end, _ = self._positions[index].tolist()
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(start)
        try:
            entry = json.loads(self._file.read(end - start))
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise ValueError("the file has changed since it was opened; start again")
        return entry

    def _name(self, number: int) -> str:
        return f"{self.path}: entry {number}" if self.is_array else f"{self.path}:{number}"

    def __getstate__(self) -> dict:
        # Every process opens the file for itself: a shared one would have one reading position.
        return {**self.__dict__, "_file": None}


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        while block := file.read(4096):
            if text := block.removeprefix(_BYTE_ORDER_MARK).strip():
                return text[:1]
    return b""


def _scan_lines(path: Path) -> Iterator[tuple[int, int, int, object]]:
    """(first byte, byte behind the last, line number from 1, value) of every line that is not blank."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if not line.removeprefix(_BYTE_ORDER_MARK).strip():
                continue
            try:
                value = json.loads(line)
            # Bytes that are no UTF-8 raise UnicodeDecodeError, a ValueError like JSONDecodeError.
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not valid JSON ({error})") from None
            yield start, end, number, value


def _scan_array(path: Path) -> Iterator[tuple[int, int, int, object]]:
    """(first byte, byte behind the last, number from 0, value) of every element; one of them at a time."""
    content = path.read_bytes()
    num_bytes = len(_BYTE_ORDER_MARK) if content.startswith(_BYTE_ORDER_MARK) else 0
    try:
        text = content[num_bytes:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    del content
    decoder, counted = json.JSONDecoder(), 0
    position, number = _skip(text, text.index("[") + 1), 0
    while not text.startswith("]", position):
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _array_error(path, text, error.pos, error.msg) from None
        # Characters are not bytes; what lies between is encoded to be measured.
        first = num_bytes + len(text[counted:position].encode())
        num_bytes = first + len(text[position:end].encode())
        counted = end
        yield first, num_bytes, number, value
        number += 1
        position = _skip(text, end)
        if text.startswith(",", position):
            position = _skip(text, position + 1)
        elif not text.startswith("]", position):
            raise _array_error(path, text, position, "expected ',' or ']' behind an entry")


def _skip(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()


def _array_error(path: Path, text: str, position: int, reason: str) -> ValueError:
    line = text.count("\n", 0, position) + 1
    return ValueError(f"{path}:{line}: not valid JSON ({reason})")
