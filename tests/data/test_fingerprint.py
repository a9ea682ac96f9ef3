"""Resuming with other data is refused."""

import json

import pytest

from paddlemix_vl2.data import SourceSpec, check_fingerprint, data_fingerprint, open_source
from tests.data.conftest import write_jsonl


def test_the_same_data_passes(sources, tmp_path):
    old = json.loads(json.dumps(data_fingerprint(sources, 3)))
    assert old["sources"][1] == {
        "name": "texts",
        "format": "text",
        "path": "texts.jsonl",
        "weight": 1.0,
        "size": 5,
    }
    check_fingerprint(old, data_fingerprint(sources, 3))
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "texts.jsonl").write_bytes((tmp_path / "texts.jsonl").read_bytes())
    check_fingerprint(
        old, data_fingerprint([sources[0], open_source(SourceSpec("text", str(moved / "texts.jsonl")))], 3)
    )


def test_other_data_is_refused(sources, tmp_path):
    old = data_fingerprint(sources, 3)
    more = open_source(SourceSpec("text", str(write_jsonl(tmp_path / "texts.jsonl", [{"text": "a"}] * 6))))
    synthetic = open_source(SourceSpec("synthetic", task="words", name="texts"))
    for new, message in [
        (data_fingerprint(sources, 4), "another data mixture: seed was 3 and is now 4"),
        (data_fingerprint(sources[:1], 3), "the number of sources was 2 and is now 1"),
        (data_fingerprint([sources[0], more], 3), r"size of source 1 \(texts\) was 5 and is now 6"),
        (data_fingerprint(sources[::-1], 3), r"name of source 0 \(texts\) was 'talks' and is now 'texts'"),
        (
            data_fingerprint([sources[0], synthetic], 3),
            r"format of source 1 \(texts\) was 'text' and is now 'synthetic'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            check_fingerprint(old, new)


def test_the_format_of_an_earlier_release_is_the_same():
    new = data_fingerprint([open_source(SourceSpec("synthetic", task="words"))], 3)
    old = {**new, "sources": [{**new["sources"][0], "format": "drawn"}]}
    with pytest.warns(FutureWarning, match="'format drawn' is now 'format synthetic'"):
        check_fingerprint(old, new)
