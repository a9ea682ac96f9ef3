"""The demo's processor, and models that answer what a test wants."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2Processor
from paddlemix_vl2.web.chat import Chat

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"
PICTURES = ROOT / "examples" / "images" / "drawn"


class StubModel:
    """Answers ``answer``; keeps what it was asked.

    Args:
        limit: positions.
        pause: seconds before each token.
        is_endless: continue the answer until the reader is gone.
    """

    def __init__(self, processor, answer: str = "red", limit: int = 2048, pause=0.0, is_endless=False):
        self.tokenizer = processor.tokenizer
        self.answer = answer
        self.pause = pause
        self.is_endless = is_endless
        self.calls = []
        self.num_tokens = 0
        self.has_ended = threading.Event()
        stop = processor.tokenizer.eos_token_id
        language = SimpleNamespace(max_sequence_length=limit, eos_token_id=stop)
        self.config = SimpleNamespace(language_config=language)

    def generate(self, streamer, **arguments):
        self.calls.append(arguments)
        self.has_ended.clear()
        ids = self.tokenizer.encode(self.answer)
        ids = ids * 1000 if self.is_endless else [*ids, self.tokenizer.eos_token_id]
        ids = ids[: arguments["max_new_tokens"]]
        try:
            for self.num_tokens, token_id in enumerate(ids, 1):
                time.sleep(self.pause)
                streamer.put(np.array([token_id]))
        finally:
            streamer.end()
            self.has_ended.set()
        return paddle.to_tensor([ids]), paddle.zeros([1, 1])

    def prompt(self, call: int = -1) -> str:
        """What the model was asked, each picture as one ``<image>``, without the begin token."""
        image = self.tokenizer.image_token_id
        ids = self.calls[call]["input_ids"][0].tolist()[1:]
        kept = [id_ for index, id_ in enumerate(ids) if id_ != image or ids[index - 1] != image]
        return self.tokenizer.decode(kept)


@pytest.fixture(scope="session")
def checkpoint():
    return CHECKPOINT


@pytest.fixture(scope="session")
def processor():
    return DeepseekVLV2Processor.from_pretrained(CHECKPOINT)


@pytest.fixture
def make_chat(processor, tmp_path):
    """``make_chat(answer=..., limit=...)`` is a :class:`Chat` with a stub, and the stub."""

    def make(**options):
        model = StubModel(processor, **options)
        return Chat(model, processor, tmp_path), model

    return make


@pytest.fixture(scope="session")
def picture():
    return lambda name: PICTURES / f"{name}.png"


@pytest.fixture(scope="session")
def browser_tool(load_tool):
    return load_tool("browser")
