"""JSON objects, and files and folders that are whole or not there."""

import json
import os

import pytest

from paddlemix_vl2 import files


@pytest.mark.parametrize(
    "text", ['{"a": "\u4e8c"}', b'{"a": "\xe4\xba\x8c"}', b'\xef\xbb\xbf{"a": "\xe4\xba\x8c"}\n']
)
def test_an_object_of_text_and_of_bytes(text):
    assert files.parse_object(text) == {"a": "\u4e8c"}


BROKEN = [
    (b"{", r"not valid JSON \(Expecting"),
    (b"", r"not valid JSON \(Expecting value"),
    (b'{"a": "\xff"}', r"not valid JSON \(not UTF-8 text: .*0xff"),
    (b"[1]", "holds a JSON list; it must be an object"),
    (b"null", "holds a JSON NoneType; it must be an object"),
    (b'{"a": ' + b"9" * 5000 + b"}", r"not valid JSON \(.*digits"),
    (b'{"a":' * 100_000, r"not valid JSON \(.*recursion"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_what_is_no_object_is_one_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        files.parse_object(content)
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"a\\.json: {message}") as of_file:
        files.read_object(file)
    assert str(of_file.value) == f"{file}: {caught.value}" and "\n" not in str(caught.value)


def test_a_missing_file_says_what_it_is_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such file; a checkpoint folder holds a\.json"):
        files.read_object(tmp_path / "a.json")


def test_what_is_written_is_read(tmp_path):
    values = {"a": "\u4e8c", "b": [1, None]}
    files.write_object(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert files.read_object(tmp_path / "a.json") == values and text == files.format_object(values)
    assert "\u4e8c" in text and text.endswith("}\n") and json.loads(text) == values
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with files.replace_file(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old" and temporary.parent == tmp_path
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_that_is_not_finished_leaves_nothing(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(error), files.replace_file(file) as temporary:
        temporary.write_text("new")
        raise error
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(UnicodeEncodeError):
        files.write_text(file, "\ud800")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    file = tmp_path / "a.txt"
    with files.replace_file(file) as first:
        with files.replace_file(file) as second:
            assert first != second
            first.write_text("1")
            second.write_text("2")
        assert file.read_text() == "2"
    assert file.read_text() == "1" and list(tmp_path.iterdir()) == [file]


def test_several_files_get_their_names_together(tmp_path, monkeypatch):
    """The last one first, and none before all are written."""
    named, original = [], os.replace
    monkeypatch.setattr(files.os, "replace", lambda old, new: (named.append(new.name), original(old, new)))
    with files.replace_file(tmp_path / "a") as a, files.replace_file(tmp_path / "b") as b:
        a.write_text("a")
        b.write_text("b")
        assert named == []
    assert named == ["b", "a"] and {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_file_that_several_processes_write(tmp_path):
    file = tmp_path / "a.bin"
    files.shared_temporary(file).write_text("x")
    assert not file.exists()
    files.finish_file(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"] and file.read_text() == "x"


def test_a_folder_is_replaced_when_it_is_whole(tmp_path):
    folder = tmp_path / "above" / "folder"
    for content in ("1", "2"):
        with files.replace_folder(folder) as temporary:
            assert list(temporary.iterdir()) == [] and temporary.parent == folder.parent
            (temporary / content).write_text(content)
        assert [path.name for path in folder.iterdir()] == [content], "nothing of the older folder is left"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_is_not_finished_leaves_the_old_one(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(KeyboardInterrupt), files.replace_folder(folder) as temporary:
        (temporary / "new").write_text("")
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_run_has_left_is_deleted(tmp_path):
    folder = tmp_path / "folder"
    (files.begin_folder(folder) / "half").write_text("")
    assert files.begin_folder(folder) == files.temporary_folder(folder)
    assert list(files.temporary_folder(folder).iterdir()) == [] and not folder.exists()
    files.finish_folder(folder)
    assert folder.is_dir() and list(tmp_path.iterdir()) == [folder]
