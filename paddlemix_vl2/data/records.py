"""The records of a user's file: the position of each, and the error of one that cannot be used.

=====  ===============================================================================================
JSONL  an object per line; blank lines are passed over
JSON   an array of objects, or an object with such an array as its ``data``
TSV    a header, and rows of fields between tabs; a field in double quotes may have tabs and line breaks
=====  ===============================================================================================

Every file of samples, questions or requests is read here. Only positions are kept, 24 bytes per record, since
a file may contain pictures.
"""

import csv
import json
import os
import re
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from paddlemix_vl2.files import check_object, parse_object
from paddlemix_vl2.processing.conversation import Conversation

_SUFFIXES = (".tsv", ".jsonl", ".json")
# Scanning is at 20 to 100 MB/s: smaller files are done before a bar is read.
_BYTES_WORTH_A_BAR = 64_000_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")

Check = Callable[[dict], object]
# First byte, byte behind the last, number in the file, content: bytes, or as far as it is read already.
Found = tuple[int, int, int, Any]


class Record(NamedTuple):
    """One sample of a source: a conversation or a plain text, never both.

    Attributes:
        conversation: with its pictures (paths or PIL images); or None.
        text: a plain document; or None.
        place: file and line, e.g. "train.jsonl:12"; errors begin with it.
    """

    conversation: Conversation | None
    text: str | None
    place: str


class BrokenSample(ValueError):
    """A sample that cannot be used, through no fault of the program: the stream continues without it.

    Attributes:
        place: file and line of the sample.
        reason: what is wrong with it, one line.
    """

    def __init__(self, place: str, reason: str):
        # Both as arguments: an exception crosses to another process as its class and its arguments.
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Overlong(BrokenSample):
    """A sample with more tokens than a sequence may have, and nothing that may be left out."""


def open_records(path: str | os.PathLike, check: Check | None = None, progress: bool = False) -> "RecordFile":
    """Open a file of records, and find the position of each.

    Args:
        path: ``.tsv``, ``.jsonl`` or ``.json``; under another name what it holds says which JSON it is.
        check: called with every record now; its ``ValueError``, and that of a record which cannot be read, is
            raised with the record's place in front. None: a broken record does not hide the others. It is
            counted like them, and reading it says what is wrong.
        progress: whether to show a bar on standard error while a large file is scanned.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, nothing in it, or JSON that is broken as a whole.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return _layout_of(path)(path, check, progress)


def _layout_of(path: Path) -> type["RecordFile"]:
    suffix, first = path.suffix.lower(), _first_byte(path)
    if suffix == ".tsv":
        return TableFile
    if first == b"[" or (suffix == ".json" and first and not _has_lines(path)):
        return ArrayFile
    if suffix not in _SUFFIXES and first not in (b"{", b""):
        raise ValueError(f"{path}: ends in {path.suffix or 'nothing'}; use one of {', '.join(_SUFFIXES)}")
    return LinesFile


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        while block := file.read(4096):
            if text := block.removeprefix(_BYTE_ORDER_MARK).strip():
                return text[:1]
    return b""


def _has_lines(path: Path) -> bool:
    """Whether a file that ends in .json has an object in its first line, and more lines."""
    with path.open("rb") as file:
        lines = (line for line in file if not _is_blank(line))
        try:
            parse_object(next(lines))
        except ValueError:
            return False
        return next(lines, None) is not None


def _is_blank(line: bytes) -> bool:
    return not line.removeprefix(_BYTE_ORDER_MARK).strip()


class RecordFile(ABC):
    """An open file of records: ``len(records)``, ``records.read(i)``, ``records.place(i)``. It can be sent to
    another process.

    Attributes:
        path: of the file.
        is_table: whether values are texts of a table's columns, not of JSON.
    """

    is_table = False

    def __init__(self, path: Path, check: Check | None, progress: bool):
        self.path = path
        self._is_checked = check is not None
        self._file: BinaryIO | None = None
        size = path.stat().st_size
        hidden = not progress or size < _BYTES_WORTH_A_BAR
        positions = array("q")  # 8 bytes each; a list of tuples would take ten times that
        with tqdm(desc=path.name, total=size, unit="B", unit_scale=True, disable=hidden) as bar:
            for start, end, number, content in self._scan():
                if check is not None:
                    self._check(number, content, check)
                positions.extend((start, end, number))
                bar.update(end - bar.n)
        if not positions:
            raise ValueError(f"{path}: holds no records")
        # [records, 3]: first byte, byte behind the last, number
        self._positions = np.array(positions, dtype=np.int64).reshape(-1, 3)

    def _check(self, number: int, content: Any, check: Check) -> None:
        try:
            check(self._parse(content))
        except ValueError as error:
            raise ValueError(f"{self._name(number)}: {error}") from None

    @abstractmethod
    def _scan(self) -> Iterator[Found]: ...

    @abstractmethod
    def _parse(self, content: Any) -> dict:
        """The record with this content.

        Raises:
            ValueError: it is none; the message does not name its place.
        """

    def _name(self, number: int) -> str:
        return f"{self.path}:{number}"

    def __len__(self) -> int:
        return len(self._positions)

    def number(self, index: int) -> int:
        """The line of record ``index``, from 1; in a JSON array its number, from 0."""
        return int(self._positions[index, 2])

    def place(self, index: int) -> str:
        """``file:line``; of a JSON array ``file: entry 12``."""
        return self._name(self.number(index))

    def read(self, index: int) -> dict:
        """Record ``index``.

        Raises:
            ValueError: it is broken, or not any more what was checked. The message does not name its place.
            OSError: the file cannot be read any more.
        """
        start, end, _ = self._positions[index].tolist()
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(start)
        try:
            return self._parse(self._file.read(end - start))
        except ValueError:
            if self._is_checked:
                raise ValueError("the file has changed since it was opened; start again") from None
            raise

    def __getstate__(self) -> dict:
        # Every process opens the file for itself: a shared one would have one reading position.
        return {**self.__dict__, "_file": None}


class LinesFile(RecordFile):
    """One JSON object per line."""

    def _scan(self) -> Iterator[Found]:
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                start, end = end, end + len(line)
                if not _is_blank(line):
                    yield start, end, number, line

    def _parse(self, content: bytes) -> dict:
        return parse_object(content)


class ArrayFile(RecordFile):
    """The array that a JSON file is, or that is the value ``data`` of the object that it is."""

    def _name(self, number: int) -> str:
        return f"{self.path}: entry {number}"

    def _parse(self, content: Any) -> dict:
        return parse_object(content) if isinstance(content, bytes) else check_object(content)

    def _scan(self) -> Iterator[Found]:
        """One element at a time: all of them as objects would take many times the file's size."""
        data = self.path.read_bytes()
        num_bytes = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
        try:
            text = data[num_bytes:].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: not UTF-8 text ({error})") from None
        del data
        begin = _skip(text, 0)
        is_whole = text.startswith("[", begin)
        position = _skip(text, (begin if is_whole else self._find_data(text)) + 1)
        counted = number = 0
        while not text.startswith("]", position):
            value, end = self._decode(text, position)
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
                raise self._error(text, position, "expected ',' or ']' behind an entry")
        behind = _skip(text, position + 1)
        if is_whole and behind < len(text):
            raise self._error(text, behind, "more text behind the array")

    def _decode(self, text: str, position: int) -> tuple[Any, int]:
        try:
            return _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise self._error(text, error.pos, error.msg) from None
        except (ValueError, RecursionError) as error:
            raise self._error(text, position, str(error)) from None

    def _error(self, text: str, position: int, reason: str) -> ValueError:
        line = text.count("\n", 0, position) + 1
        return ValueError(f"{self.path}:{line}: not valid JSON ({reason})")

    def _find_data(self, text: str) -> int:
        """Where the array ``data`` of the object begins."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: not valid JSON ({error})") from None
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise ValueError(f"{self.path}: holds neither an array nor an object with an array 'data'")
        position = text.index("{")
        while True:  # the object is valid, so nothing here can fail
            key, end = _DECODER.raw_decode(text, _skip(text, position + 1))
            position = _skip(text, text.index(":", end) + 1)
            if key == "data" and text.startswith("[", position):
                return position
            position = text.index(",", _DECODER.raw_decode(text, position)[1])


_DECODER = json.JSONDecoder()


def _skip(text: str, position: int) -> int:
    """The first position from ``position`` on that is not white space."""
    space = _SPACE.match(text, position)
    return space.end() if space else position


class TableFile(RecordFile):
    """Rows of a tab-separated file; a record has texts by column, empty fields left out."""

    is_table = True

    def _scan(self) -> Iterator[Found]:
        with self.path.open("rb") as file, _long_fields():
            lines = _TextLines(file)
            rows = csv.reader(lines, delimiter="\t")
            self._columns = self._read_header(rows)
            while True:
                start, number = lines.position, lines.number + 1
                try:
                    row = next(rows, None)
                except csv.Error:
                    row = [""]  # reading it says what is wrong
                if row is None:
                    return
                if row:
                    yield start, lines.position, number, row

    def _read_header(self, rows: Iterator[list[str]]) -> list[str]:
        try:
            columns = [name.removeprefix("\ufeff") for name in next(rows, [])]
        except csv.Error as error:
            raise ValueError(f"{self.path}:1: not a header of columns ({error})") from None
        if len(set(columns)) < len(columns):
            raise ValueError(f"{self.path}:1: two columns of the header have the same name")
        return columns

    def _parse(self, content: bytes | list[str]) -> dict:
        row = content if isinstance(content, list) else self._read_row(content)
        if len(row) != len(self._columns):
            raise ValueError(f"has {len(row)} field(s), the header {len(self._columns)}")
        return {name: value for name, value in zip(self._columns, row, strict=True) if value.strip()}

    def _read_row(self, content: bytes) -> list[str]:
        with _long_fields():
            try:
                return next(csv.reader(_TextLines(BytesIO(content)), delimiter="\t"))
            except csv.Error as error:
                raise ValueError(f"not a row of a table ({error})") from None


class _TextLines:
    """The lines of a file as text, with the position behind them: ``csv`` takes as many as a row has."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.position = self.number = 0

    def __iter__(self) -> "_TextLines":
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.position += len(line)
        self.number += 1
        # Bytes that are no UTF-8 spoil their own row only.
        return line.decode("utf-8", errors="replace")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let ``csv`` read fields as long as a picture; its limit belongs to the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
