"""Opening sources: files as files, and what describes them."""

import pickle
import re

import pytest

from paddlemix_vl2.data import BrokenSample, SourceSpec, open_source
from tests.data.conftest import write_jsonl


@pytest.fixture
def texts(tmp_path):
    return write_jsonl(tmp_path / "texts.jsonl", [{"text": "a\u00e4"}, {"text": "b"}, {"text": "c"}])


def test_missing_file_and_folder(tmp_path, texts):
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{tmp_path / 'x.jsonl'}: no such file (source 'x', path)")
    ):
        open_source(SourceSpec("text", str(tmp_path / "x.jsonl")))
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder \(source 'texts', image_folder\)"):
        open_source(SourceSpec("text", str(texts), image_folder="nowhere"))


def test_a_source_can_be_sent_to_another_process(texts):
    source = open_source(SourceSpec("text", str(texts)))
    assert source[2].text == "c"  # opens the file
    copy = pickle.loads(pickle.dumps(source))
    assert [record.text for record in copy] == ["a\u00e4", "b", "c"] and len(copy) == 3


def test_a_file_that_shrinks_gives_broken_samples(texts):
    source = open_source(SourceSpec("text", str(texts)))
    texts.write_text("{}")
    with pytest.raises(BrokenSample, match=r"texts.jsonl:3: the file has changed since it was opened"):
        source[2]


def test_defaults_of_a_spec():
    spec = SourceSpec.from_dict({"format": "llava", "path": "data/a.json"}, "x.yaml")
    assert (spec.image_folder, spec.weight, spec.name) == ("data", 1.0, "a")
    synthetic = SourceSpec.from_dict({"format": "synthetic", "task": "describe", "weight": 2}, "x.yaml")
    assert (synthetic.name, synthetic.split, synthetic.size, synthetic.image_folder) == (
        "describe",
        "train",
        10**9,
        "",
    )


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([], "x.yaml: a source is a mapping with a format, not list"),
        ({"path": "a"}, "x.yaml: format is missing; use one of llava"),
        ({"format": "xml", "path": "a"}, "x.yaml: unknown format 'xml'; use one of llava, messages"),
        ({"format": ["text"]}, r"x.yaml: format is \['text'\]; it must be of type PathLike|str"),
        ({"format": "text", "pth": "a"}, r"x.yaml: unknown key 'pth' \(did you mean 'path'\?\)"),
        ({"format": "text", "qqq": "a"}, r"x.yaml: unknown key 'qqq' \(known keys: format, path"),
        ({"format": "text"}, "x.yaml: the format 'text' needs a path"),
        ({"format": "synthetic"}, "x.yaml: the format 'synthetic' needs a task"),
        (
            {"format": "synthetic", "task": "a", "path": "b"},
            "x.yaml: path does not belong to the format 'synthetic'",
        ),
        ({"format": "text", "path": "a", "size": 3}, "x.yaml: size does not belong to the format 'text'"),
        (
            {"format": "text", "path": "a", "weight": -1},
            "x.yaml: weight is -1; it must be a number of at least 0",
        ),
        ({"format": "text", "path": "a", "weight": float("nan")}, "x.yaml: weight is nan"),
        ({"format": "text", "path": "a", "weight": "1"}, "x.yaml: weight is '1'; it must be of type float"),
        ({"format": "synthetic", "task": "a", "size": 0}, "x.yaml: size is 0; it must be at least 1"),
    ],
)
def test_bad_specs(mapping, message):
    with pytest.raises(ValueError, match=message):
        SourceSpec.from_dict(mapping, "x.yaml")
