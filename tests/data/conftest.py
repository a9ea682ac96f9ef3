"""A small processor, data files with pictures, and loaders over them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlemix_vl2.data import SourceSpec, open_source
from paddlemix_vl2.processing import DeepseekTokenizer, DeepseekVLV2Processor


@pytest.fixture(scope="session")
def processor(tokenizer_folders) -> DeepseekVLV2Processor:
    """Tiles of 56 pixels that become 2 x 2 tokens; answers only are learned."""
    tokenizer = DeepseekTokenizer.from_pretrained(tokenizer_folders["128k"])
    return DeepseekVLV2Processor(tokenizer, [(56, 56), (112, 56), (56, 112), (112, 112)], mask_prompt=True)


def write_jsonl(file: Path, entries: list) -> Path:
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return file


def write_picture(file: Path, width: int, height: int) -> str:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file.name


def ask(question: str, answer: str, *pictures: str) -> list[dict]:
    question = {"role": "user", "content": "<image>" * len(pictures) + question}
    if pictures:
        question["images"] = list(pictures)
    return [question, {"role": "assistant", "content": answer}]


@pytest.fixture
def sources(tmp_path) -> list:
    """17 conversations, two of three with a picture and of different lengths, and 5 texts; weights 3 to 1."""
    small, wide = write_picture(tmp_path / "small.png", 50, 50), write_picture(tmp_path / "wide.png", 120, 60)
    pictures = [(), (small,), (wide,)]
    talks = [
        {"messages": ask(f"Question {i}", "yes " * (1 + 5 * i % 13), *pictures[i % 3])} for i in range(17)
    ]
    texts = [{"text": f"Document {i} " + "and on " * (3 * i)} for i in range(5)]
    return [
        open_source(
            SourceSpec("messages", str(write_jsonl(tmp_path / "talks.jsonl", talks)), weight=3.0),
        ),
        open_source(SourceSpec("text", str(write_jsonl(tmp_path / "texts.jsonl", texts)))),
    ]
