"""Results as they come, in any order, and at the end a JSONL file of them in order; a run may be interrupted.

Beside the output ``answers.jsonl`` there are ``answers.jsonl.run.json``, which has what the run depends on,
and until it is done ``answers.jsonl.partial``, of numbered lines.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from paddlemix_vl2.files import parse_object, read_object, replace_file, write_object
from paddlemix_vl2.hub import TOKENIZER_FILE

_WHOLE_FILE = 1 << 28  # bytes; larger files are compared by blocks spread over them
_BLOCK = 1 << 20


class Journal:
    """The results of a run.

    Args:
        output: the file to be written.
        run: what results depend on, as values of JSON. A run resumes only where all of it is the same.
        total: how many results there are to be; they are numbered from 0.
        restart: start over: what is there is deleted.

    Attributes:
        results: number -> result, those of earlier runs included, but for results with an ``error``: what
            failed is tried again.

    Raises:
        ValueError: what is there comes from another run, or from something else.
        OSError: the folder cannot be written to.
    """

    def __init__(self, output: str | os.PathLike, run: dict, total: int, restart: bool = False):
        self.output, self.total = Path(output), total
        self._partial = self.output.with_name(f"{self.output.name}.partial")
        self._run_file = self.output.with_name(f"{self.output.name}.run.json")
        self.results: dict[int, dict] = {}
        if self.output.is_dir():
            raise ValueError(f"{self.output}: is a folder; name a file in it")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        run = json.loads(json.dumps({**run, "total": total}))
        files = (self.output, self._partial, self._run_file)
        if restart:
            for file in files:
                file.unlink(missing_ok=True)
        if any(file.exists() for file in files):
            self._check_run(run)
            self._read()
        else:
            write_object(self._run_file, run)
        self._file = None

    @property
    def missing(self) -> list[int]:
        """The numbers without a result yet."""
        return [number for number in range(self.total) if number not in self.results]

    def write(self, number: int, result: dict) -> None:
        """Keep a result; it outlives this process once this has returned."""
        if self._file is None:
            self._file = self._partial.open("ab")
        self._file.write(_line([number, result]))
        self._file.flush()
        self.results[number] = result

    def finish(self) -> list[dict]:
        """Write the output, in order, and remove the partial file.

        Returns:
            all results in order.

        Raises:
            ValueError: some are missing.
        """
        self.close()
        if self.missing:
            raise ValueError(f"{self.output}: {len(self.missing)} of {self.total} results are missing")
        results = [self.results[number] for number in range(self.total)]
        if self._partial.exists():
            with replace_file(self.output) as temporary:
                temporary.write_bytes(b"".join(map(_line, results)))
            self._partial.unlink()
        return results

    def close(self) -> None:
        """Close the partial file; a later run resumes from it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _check_run(self, run: dict) -> None:
        anew = "--restart begins anew"
        if not self._run_file.exists():
            raise ValueError(f"{self.output}: is there already, from no run known here; {anew}")
        before = read_object(self._run_file)
        for name in run.keys() | before.keys():
            if before.get(name) != run.get(name):
                old, new = (json.dumps(one.get(name), ensure_ascii=False)[:80] for one in (before, run))
                raise ValueError(
                    f"{self.output}: belongs to another run: {name} was {old} and is now {new}; {anew}"
                )

    def _read(self) -> None:
        """Results of earlier runs, those of the partial file last: it is the younger one."""
        results: dict[int, dict] = {}
        if self.output.exists():
            results.update(enumerate(self._read_output()))
        if self._partial.exists():
            content = self._partial.read_bytes()
            whole = content.rfind(b"\n") + 1
            results.update(json.loads(line) for line in content[:whole].splitlines())
            # What follows the last whole line was being written when the run ended.
            os.truncate(self._partial, whole)
        self.results = {number: result for number, result in results.items() if "error" not in result}

    def _read_output(self) -> Iterator[dict]:
        for number, line in enumerate(self.output.read_bytes().splitlines(), start=1):
            try:
                yield parse_object(line)
            except ValueError as error:
                raise ValueError(f"{self.output}:{number}: {error}; --restart begins anew") from None


def _line(value) -> bytes:
    # A lone surrogate, which JSON can write and UTF-8 cannot, becomes a question mark.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"


def describe_files(folder: str | os.PathLike) -> dict[str, str]:
    """Name -> :func:`digest` of the files of a checkpoint or an adapter that decide its answers."""
    kinds = ("*.safetensors", "*config.json", TOKENIZER_FILE)
    files = sorted(file for kind in kinds for file in Path(folder).glob(kind))
    return {file.name: digest(file) for file in files}


def digest(path: str | os.PathLike) -> str:
    """A short name of what a file holds: of all of it up to 256 MB, else of 256 blocks spread over it."""
    size = os.path.getsize(path)
    found = hashlib.sha256(str(size).encode())
    step = max(size // (_WHOLE_FILE // _BLOCK), _BLOCK)
    with open(path, "rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            found.update(file.read(_BLOCK))
    return found.hexdigest()[:16]
