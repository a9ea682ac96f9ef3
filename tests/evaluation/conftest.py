"""The demo's processor, and a model that says what it was asked."""

import csv
import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2Processor

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def checkpoint():
    return CHECKPOINT


@pytest.fixture(scope="session")
def processor():
    return DeepseekVLV2Processor.from_pretrained(CHECKPOINT)


class Echo:
    """Answers with the last words of the question; keeps the shapes of its batches.

    Args:
        fail_at: the number of the call that is interrupted.
    """

    def __init__(self, processor, words=1, fail_at=None):
        self.tokenizer, self.words, self.fail_at = processor.tokenizer, words, fail_at
        self.shapes = []

    def generate(self, input_ids, attention_mask, max_new_tokens, **others):
        if len(self.shapes) == self.fail_at:
            raise KeyboardInterrupt
        self.shapes.append(tuple(input_ids.shape))
        end = self.tokenizer.eos_token_id
        rows = []
        for ids, mask in zip(input_ids.numpy(), attention_mask.numpy(), strict=True):
            asked = self.tokenizer.decode(ids[mask == 1].tolist())
            said = " ".join(asked.removesuffix("\n\n<|Assistant|>:").split()[-self.words :])
            # What follows the end token is not part of the answer.
            rows.append([*self.tokenizer.encode(said), end, *self.tokenizer.encode("noise")][:max_new_tokens])
        width = max(map(len, rows))
        return paddle.to_tensor(np.array([row + [end] * (width - len(row)) for row in rows])), None


@pytest.fixture
def echo(processor):
    return Echo(processor)


@pytest.fixture
def make_echo(processor):
    return lambda **settings: Echo(processor, **settings)


@pytest.fixture
def write_jsonl(tmp_path):
    def write(*entries, name="data.jsonl"):
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def write_tsv(tmp_path):
    def write(*rows, name="data.tsv"):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / name

    return write
