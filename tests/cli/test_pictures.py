"""A picture that the command line names is opened and decoded once, on its way from the flag to the batch."""

import io
import json
from collections import Counter
from pathlib import Path

import PIL.Image
import PIL.ImageFile
import pytest

from paddlemix_vl2.cli import batch, chat, evaluate, inference

PICTURES = Path(__file__).resolve().parents[2] / "examples" / "images" / "drawn"
WORDS, CIRCLE = PICTURES / "words.png", PICTURES / "red_circle.png"
COMMON = ["--dtype", "float32", "--max_new_tokens", "2"]


@pytest.fixture
def opened(monkeypatch):
    """Files by name -> how often Pillow has opened them."""
    counts, original = Counter(), PIL.Image.open

    def count(file, *arguments, **settings):
        counts[Path(file).name] += 1
        return original(file, *arguments, **settings)

    monkeypatch.setattr(PIL.Image, "open", count)
    return counts


@pytest.fixture
def decoded(monkeypatch):
    """Files by name -> how often Pillow has decoded one that was open."""
    counts, original = Counter(), PIL.ImageFile.ImageFile.load

    def count(self):
        counts[Path(self.filename).name] += bool(self.tile)  # what is decoded has no tiles left
        return original(self)

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", count)
    return counts


@pytest.fixture(autouse=True)
def with_the_demo_model(monkeypatch, demo_model):
    for module in (inference, chat, batch.resumable):
        monkeypatch.setattr(module, "load_model", lambda *_: demo_model)


ONCE = {WORDS.name: 1, CIRCLE.name: 1}


def test_infer(opened, decoded, tmp_path):
    files = ["--image_files", str(WORDS), str(CIRCLE), "--question", "Read the text."]
    assert inference.main([*COMMON, *files, "--output", str(tmp_path / "boxes.png")]) == 0
    assert opened == decoded == ONCE


def test_chat(opened, decoded, monkeypatch):
    """Also where later questions come back to the pictures."""
    lines = ["Read the text.", f"/image {CIRCLE}", "Which shape is it?", "Which colour is the circle?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert chat.main([*COMMON, "--image_files", str(WORDS)]) == 0
    assert opened == decoded == ONCE


def test_batch(opened, decoded, tmp_path):
    messages = [{"role": "user", "content": "<image>\nWhat is it?", "images": [str(CIRCLE)]}]
    entries = [{"image": str(WORDS), "question": "Read the text."}, {"messages": messages}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, entries)))
    paths = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert batch.main([*COMMON, *paths]) == 0
    assert opened == decoded == ONCE


def test_evaluate_where_boxes_need_the_size(opened, decoded, tmp_path):
    entries = [{"image": str(file), "sent": "x", "bbox": [0, 0, 9, 9]} for file in (WORDS, CIRCLE)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, entries)))
    paths = ["--data", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert evaluate.main([*COMMON, *paths, "--task", "refcoco_val"]) == 0
    assert opened == decoded == ONCE
