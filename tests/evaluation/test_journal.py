"""Runs that are interrupted, resumed, changed, started over."""

import json

import pytest

from paddlemix_vl2.evaluation.journal import Journal, describe_files, digest

RUN = {"task": "docvqa", "model": {"config.json": "1"}}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "new" / "out.jsonl"


def lines(file):
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_results_come_in_any_order_and_stand_in_order(output):
    journal = Journal(output, RUN, 3)
    for number in (2, 0, 1):
        assert not output.exists()
        journal.write(number, {"answer": f"第{number}\u2028"})
    assert journal.finish() == lines(output) == [{"answer": f"第{number}\u2028"} for number in range(3)]
    assert sorted(file.name for file in output.parent.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]


def test_an_interrupted_run_goes_on_and_a_line_that_was_cut_is_done_again(output):
    journal = Journal(output, RUN, 4)
    journal.write(3, {"answer": "d"})
    journal.write(1, {"answer": "b"})
    journal.close()
    partial = output.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes() + b'[0, {"answer": "a')
    journal = Journal(output, RUN, 4)
    assert journal.missing == [0, 2]
    journal.write(0, {"answer": "A"})
    with pytest.raises(ValueError, match="1 of 4 results are missing"):
        journal.finish()
    journal = Journal(output, RUN, 4)
    assert journal.missing == [2]
    journal.write(2, {"answer": "c"})
    assert [result["answer"] for result in journal.finish()] == ["A", "b", "c", "d"]


def test_a_finished_run_has_nothing_missing(output):
    journal = Journal(output, RUN, 1)
    journal.write(0, {"answer": "a"})
    journal.finish()
    before = output.stat().st_mtime_ns
    assert Journal(output, RUN, 1).missing == [] and Journal(output, RUN, 1).finish() == [{"answer": "a"}]
    assert output.stat().st_mtime_ns == before


def test_what_failed_is_tried_again_and_the_rest_is_kept(output):
    journal = Journal(output, RUN, 3)
    for number, result in enumerate([{"answer": "a"}, {"error": "x"}, {"error": "y"}]):
        journal.write(number, result)
    journal.finish()
    journal = Journal(output, RUN, 3)
    assert journal.missing == [1, 2]
    journal.write(1, {"answer": "b"})
    journal.close()  # interrupted again: output and partial file are both there
    journal = Journal(output, RUN, 3)
    assert journal.missing == [2]
    journal.write(2, {"error": "z"})
    assert journal.finish() == lines(output) == [{"answer": "a"}, {"answer": "b"}, {"error": "z"}]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("run", "total", "message"),
    [
        ({**RUN, "task": "infovqa"}, 2, 'task was "docvqa" and is now "infovqa"; --restart begins anew'),
        ({**RUN, "model": {"config.json": "2"}}, 2, "model was"),
        ({**RUN, "limit": 5}, 2, "limit was null and is now 5"),
        (RUN, 3, "total was 2 and is now 3"),
    ],
)
def test_another_run_is_refused_and_changes_nothing(output, finished, run, total, message):
    journal = Journal(output, RUN, 2)
    journal.write(0, {"answer": "a"})
    if finished:
        journal.write(1, {"answer": "b"})
        journal.finish()
    journal.close()
    before = {file.name: file.read_bytes() for file in output.parent.iterdir()}
    with pytest.raises(ValueError, match=message):
        Journal(output, run, total)
    assert {file.name: file.read_bytes() for file in output.parent.iterdir()} == before
    journal = Journal(output, run, total, restart=True)
    assert len(journal.missing) == total and not output.exists()


def test_a_file_of_someone_else_is_not_overwritten(output):
    output.parent.mkdir()
    output.write_text("mine\n")
    with pytest.raises(ValueError, match="is there already, from no run known here"):
        Journal(output, RUN, 1)
    assert output.read_text() == "mine\n"
    output.rename(output.with_name("out.jsonl.partial"))
    with pytest.raises(ValueError, match="is there already, from no run known here"):
        Journal(output, RUN, 1)
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        Journal(output.parent, RUN, 1)


@pytest.mark.parametrize(
    ("line", "message"), [("mine", "not valid JSON"), ("[1]", "holds a JSON list; it must be an object")]
)
def test_an_output_that_was_changed_is_one_line(output, line, message):
    journal = Journal(output, RUN, 2)
    for number in range(2):
        journal.write(number, {"answer": "a"})
    journal.finish()
    output.write_text('{"answer": "a"}\n' + line + "\n")
    with pytest.raises(ValueError) as caught:
        Journal(output, RUN, 2)
    assert str(caught.value).startswith(f"{output}:2: {message}")
    assert str(caught.value).endswith("; --restart begins anew")


def test_a_lone_surrogate_does_not_end_a_run(output):
    journal = Journal(output, RUN, 1)
    journal.write(0, {"answer": "\ud800!"})
    journal.finish()
    assert lines(output) == [{"answer": "?!"}]


def test_a_digest_depends_on_content_and_length(tmp_path, monkeypatch):
    monkeypatch.setattr("paddlemix_vl2.evaluation.journal._WHOLE_FILE", 64)
    monkeypatch.setattr("paddlemix_vl2.evaluation.journal._BLOCK", 16)
    file = tmp_path / "a"
    found = set()
    # Up to 64 bytes every one of them counts; of 160 bytes those of four blocks of 16, the first among them.
    for content in (b"", b"x", b"xx", b"x" * 64, b"x" * 63 + b"y", b"x" * 160, b"y" + b"x" * 159):
        file.write_bytes(content)
        assert digest(file) == digest(file)
        found.add(digest(file))
    assert len(found) == 7


def test_a_checkpoint_is_described_by_what_decides_its_answers(tmp_path):
    for name in ("model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text(name)
    before = describe_files(tmp_path)
    assert sorted(before) == ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json"]
    (tmp_path / "model.safetensors").write_text("other weights")
    after = describe_files(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}
