"""Files of records: every layout, positions, and records that are broken."""

import csv
import json

import pytest

from paddlemix_vl2.evaluation.records import open_records


def all_of(records):
    return [records.read(index) for index in range(len(records))]


def test_jsonl_with_blank_lines_and_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes('\ufeff{"a": 1}\n\n  \n{"a": "二\u2028"}\n{"a": 3}'.encode())
    records = open_records(file)
    assert all_of(records) == [{"a": 1}, {"a": "二\u2028"}, {"a": 3}]
    assert [records.place(index) for index in range(3)] == [f"{file}:1", f"{file}:4", f"{file}:5"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": ', "not valid JSON"),
        (b"[1]", "holds a JSON list; it must be an object"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
    ],
)
def test_a_broken_line_does_not_hide_the_others(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    records = open_records(file)
    assert len(records) == 3 and records.read(0) == {"a": 1} and records.read(2) == {"a": 2}
    with pytest.raises(ValueError, match=message):
        records.read(1)


@pytest.mark.parametrize("content", [[{"a": 1}, 5, {"a": 2}], {"info": "x", "data": [{"a": 1}, 5, {"a": 2}]}])
def test_a_json_array_and_an_object_that_has_one(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    records = open_records(file)
    assert len(records) == 3 and records.read(2) == {"a": 2}
    assert records.place(2) == f"{file}: entry 2" and records.number(2) == 2
    with pytest.raises(ValueError, match="holds a JSON int"):
        records.read(1)


def test_tsv_as_spreadsheets_write_it(tmp_path):
    long = "x" * 400_000  # longer than csv takes by itself, as pictures are
    rows = [
        {"index": "0", "text": 'He said "yes"\tand\nleft', "image": long},
        {"index": "1", "text": "二", "image": ""},
        {"index": "2", "text": "last", "image": "short"},
    ]
    file = tmp_path / "a.tsv"
    limit = csv.field_size_limit()
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    records = open_records(file)
    assert all_of(records) == [rows[0], {"index": "1", "text": "二"}, rows[2]]
    # The first row has a line break in it.
    assert [records.number(index) for index in range(3)] == [2, 4, 5]
    assert csv.field_size_limit() == limit


def test_a_row_with_other_columns_is_one_broken_record(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('a\tb\n1\t2\n\n3\n4" of pipe\t5\n')
    records = open_records(file)
    assert records.read(0) == {"a": "1", "b": "2"} and records.read(2) == {"a": '4" of pipe', "b": "5"}
    with pytest.raises(ValueError, match=r"has 1 field\(s\), the header 2"):
        records.read(1)
    assert records.place(1) == f"{file}:4"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b", "ends in .csv; use one of .tsv, .jsonl, .json"),
        ("a.jsonl", "\n\n", "holds no records"),
        ("a.tsv", "a\tb\n", "holds no records"),
        ("a.tsv", "", "holds no records"),
        ("a.tsv", "a\ta\n1\t2\n", "two columns of the header have the same name"),
        ("a.json", "[1", "not valid JSON"),
        ("a.json", '{"a": 1}', "neither an array nor an object with an array 'data'"),
        ("a.json", "[]", "holds no records"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_records(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.tsv: no such file"):
        open_records(tmp_path / "a.tsv")
