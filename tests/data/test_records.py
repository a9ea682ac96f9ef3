"""Files of records: every layout, positions, broken records, and files that are checked when opened."""

import csv
import json
import pickle

import pytest

from paddlemix_vl2.data import records as records_module
from paddlemix_vl2.data.records import open_records


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


def test_a_file_of_another_name(tmp_path):
    """What a file holds says which JSON it is; the other endings are refused."""
    for name, content in (
        ("a.txt", '{"a": 1}\n{"a": 2}'),
        ("a", '[{"a": 1}, {"a": 2}]'),
        ("b.jsonl", '[{"a": 1}, {"a": 2}]'),
    ):
        (tmp_path / name).write_text(content)
        assert all_of(open_records(tmp_path / name)) == [{"a": 1}, {"a": 2}]
    (tmp_path / "a.md").write_text("# A title")
    with pytest.raises(ValueError, match=r"a\.md: ends in \.md; use one of"):
        open_records(tmp_path / "a.md")


def test_lines_in_a_file_that_ends_in_json(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('\ufeff\n{"a": 1}\n\n{"a": \n', encoding="utf-8")
    records = open_records(file)
    assert records.read(0) == {"a": 1} and records.place(1) == f"{file}:4"
    with pytest.raises(ValueError, match="not valid JSON"):
        records.read(1)


@pytest.mark.parametrize(
    "text",
    [
        '{"data": [{"a": "\u4e8c"}, {"a": 2}]}',
        '\ufeff {"\u4e8c" : [{"data": [1]}], "n": {"data": []},\n'
        ' "data" :\n [ {"a": "\u4e8c"},{"a": 2} ] , "x": 1}\n',
    ],
)
def test_the_array_of_an_object(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    records = open_records(file)
    assert all_of(records) == [{"a": "\u4e8c"}, {"a": 2}]
    assert pickle.loads(pickle.dumps(records)).read(1) == {"a": 2}


def test_a_row_that_is_none_is_one_broken_record(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_bytes(b"a\tb\n1\t2\nx\ry\t3\n4\t5\n")
    records = open_records(file)
    assert records.is_table and len(records) == 3 and records.read(2) == {"a": "4", "b": "5"}
    with pytest.raises(ValueError, match=r"not a row of a table \("):
        records.read(1)
    (tmp_path / "b.tsv").write_bytes(b"a\rb\tc\n")
    with pytest.raises(ValueError, match=r"b\.tsv:1: not a header of columns \("):
        open_records(tmp_path / "b.tsv")


# ---- checked when it is opened ----


def check(entry):
    if "text" not in entry:
        raise ValueError("'text' is missing")


def test_blank_lines_count_as_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf\n{"text": "\xc3\xa4"}\r\n  \n\n{"text": "b"}')
    records = open_records(file, check)
    assert [entry["text"] for entry in all_of(records)] == ["\u00e4", "b"]
    assert [records.place(0), records.place(1)] == [f"{file}:2", f"{file}:5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', r"a.jsonl:2: not valid JSON \("),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a.jsonl:2: not valid JSON \(.*utf-8"),
        (b'{"text": "a"}\n{"x": ""}\n', "a.jsonl:2: 'text' is missing"),
        (b'{"text": "a"}\n' + b'{"text":' * 100_000, r"a.jsonl:2: not valid JSON \(.*recursion"),
        (b"", "a.jsonl: holds no records"),
        (b"\n \n", "a.jsonl: holds no records"),
        (b"[]", "a.jsonl: holds no records"),
        (b'[{"text": "a"},\n{"text": "b"]', "a.jsonl:2: not valid JSON"),
        (b'[{"text": "a"}\n {"text": "b"}]', r"a.jsonl:2: not valid JSON \(expected ',' or '\]'"),
        (b'[{"text": "a"}', r"a.jsonl:1: not valid JSON \(expected ',' or '\]'"),
        (b'[{"text": "a"}]\n[{"text": "b"}]', r"a.jsonl:2: not valid JSON \(more text behind the array\)"),
        (b'[{"text": "a"}, 3]', "a.jsonl: entry 1: holds a JSON int; it must be an object"),
        (b'[{"text": "a"}, {}]', "a.jsonl: entry 1: 'text' is missing"),
        (b'[{"text": "\xff"}]', "a.jsonl: not UTF-8 text"),
    ],
)
def test_broken_files(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_records(tmp_path / "a.jsonl", check)
    assert "\n" not in str(caught.value)


def test_a_table_can_be_checked_too(tmp_path):
    (tmp_path / "a.tsv").write_text("text\n1\n\n2\t3\n")
    with pytest.raises(ValueError, match=r"a\.tsv:4: has 2 field\(s\), the header 1"):
        open_records(tmp_path / "a.tsv", check)


def test_a_file_that_has_changed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n')
    checked, plain = open_records(file, check), open_records(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"^the file has changed since it was opened; start again$"):
        checked.read(1)
    with pytest.raises(ValueError, match=r"^not valid JSON"):
        plain.read(1)


def test_a_bar_for_large_files_only(tmp_path, monkeypatch, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a"}\n')
    open_records(file, check, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(records_module, "_BYTES_WORTH_A_BAR", 1)
    open_records(file, check)
    assert capsys.readouterr().err == ""
    open_records(file, check, progress=True)
    captured = capsys.readouterr()
    assert "texts.jsonl: 100%" in captured.err and captured.out == ""
