"""Files of records, read one at a time: TSV with a header, JSONL, and a JSON array or an object that has one.

A record that is broken does not hide the others: it is counted like them, and reading it says what is wrong.
Of TSV and JSONL only positions are kept, since pictures may stand in them.
"""

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_SUFFIXES = (".tsv", ".jsonl", ".json")


def open_records(path: str | Path) -> "Records":
    """The records of a ``.tsv``, ``.jsonl`` or ``.json`` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, nothing in it, or a ``.json`` that is no JSON at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    kinds = dict(zip(_SUFFIXES, (TsvRecords, JsonlRecords, JsonRecords), strict=True))
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}: ends in {path.suffix or 'nothing'}; use one of {', '.join(_SUFFIXES)}")
    records = kinds[path.suffix.lower()](path)
    if not len(records):
        raise ValueError(f"{path}: holds no records")
    return records


class Records(ABC):
    """``len(records)``, ``records.number(i)``, ``records.place(i)``, ``records.read(i)``."""

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def number(self, index: int) -> int:
        """The line of record ``index``, from 1; in a JSON array its number, from 0."""

    def place(self, index: int) -> str:
        """``file:line``; of a JSON array ``file: entry 12``."""
        return f"{self.path}:{self.number(index)}"

    @abstractmethod
    def read(self, index: int) -> dict:
        """Record ``index``.

        Raises:
            ValueError: it is not a record; the message does not name its place.
        """


class JsonRecords(Records):
    """The array that a JSON file is, or that is the value ``data`` of the object that it is."""

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        # Bytes that are no UTF-8 raise UnicodeDecodeError, a ValueError like JSONDecodeError.
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        entries = content.get("data") if isinstance(content, dict) else content
        if not isinstance(entries, list):
            raise ValueError(f"{path}: holds neither an array nor an object with an array 'data'")
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def number(self, index: int) -> int:
        return index

    def place(self, index: int) -> str:
        return f"{self.path}: entry {index}"

    def read(self, index: int) -> dict:
        return _checked(self._entries[index])


class _PositionedRecords(Records):
    """Records of which the first byte and the line are kept."""

    def __init__(self, path: Path):
        super().__init__(path)
        with path.open("rb") as file:
            self._positions = list(self._scan(file))

    @abstractmethod
    def _scan(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        """First byte and line (from 1) of every record."""

    def __len__(self) -> int:
        return len(self._positions)

    def number(self, index: int) -> int:
        return self._positions[index][1]


class JsonlRecords(_PositionedRecords):
    """One JSON object per line; blank lines are passed over."""

    def _scan(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        position = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield position, number
            position += len(line)

    def read(self, index: int) -> dict:
        with self.path.open("rb") as file:
            file.seek(self._positions[index][0])
            line = file.readline()
        try:
            return _checked(json.loads(line.decode("utf-8-sig")))
        except json.JSONDecodeError as error:
            raise ValueError(f"not valid JSON ({error})") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error})") from None


class TsvRecords(_PositionedRecords):
    """Rows of a tab-separated file with a header; a field in double quotes may have tabs and line breaks.

    ``read`` gives texts by column, empty fields left out.
    """

    def _scan(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        lines = _Lines(file)
        with _long_fields():
            rows = csv.reader(lines, delimiter="\t")
            self.columns = [name.removeprefix("\ufeff") for name in next(rows, [])]
            while True:
                start, number = lines.position, lines.number + 1
                row = next(rows, None)
                if row is None:
                    break
                if row:
                    yield start, number
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"{self.path}:1: two columns of the header have the same name")

    def read(self, index: int) -> dict:
        with self.path.open("rb") as file, _long_fields():
            file.seek(self._positions[index][0])
            row = next(csv.reader(_Lines(file), delimiter="\t"))
        if len(row) != len(self.columns):
            raise ValueError(f"has {len(row)} field(s), the header {len(self.columns)}")
        return {name: value for name, value in zip(self.columns, row, strict=True) if value.strip()}


class _Lines:
    """The lines of a file as text, with the position behind them: ``csv`` takes as many as a row has."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.position = self.number = 0

    def __iter__(self) -> "_Lines":
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
def _long_fields():
    """Let ``csv`` read fields as long as a picture; its limit belongs to the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _checked(entry) -> dict:
    if not isinstance(entry, dict):
        raise ValueError(f"holds a JSON {type(entry).__name__}; it must be an object")
    return entry
