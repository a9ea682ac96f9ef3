"""Processors as published, made once; messages of a conversation."""

import json

import pytest

from paddlemix_vl2.processing import DeepseekTokenizer, DeepseekVLV2Processor


@pytest.fixture(scope="session")
def published_settings(golden) -> dict:
    settings = json.loads((golden / "mha_greedy" / "processor_config.json").read_text())
    settings.pop("processor_class")
    return settings


@pytest.fixture(scope="session")
def tokenizers(tokenizer_folders) -> dict[str, DeepseekTokenizer]:
    return {name: DeepseekTokenizer.from_pretrained(folder) for name, folder in tokenizer_folders.items()}


@pytest.fixture(scope="session")
def processor(tokenizers, published_settings) -> DeepseekVLV2Processor:
    """128k tokenizer, published settings."""
    return DeepseekVLV2Processor(tokenizers["128k"], **published_settings)


@pytest.fixture(scope="session")
def small_processor(tokenizers) -> DeepseekVLV2Processor:
    """Tiles of 56 pixels that become 2 x 2 tokens: quick, and nothing may assume 384 and 14 x 14."""
    return DeepseekVLV2Processor(tokenizers["128k"], [(56, 56), (112, 56), (56, 112), (112, 112)])


def user(content, *pictures, role="<|User|>"):
    message = {"role": role, "content": content}
    return {**message, "images": list(pictures)} if pictures else message


def answer(content="", role="<|Assistant|>"):
    return {"role": role, "content": content}


def system(content):
    return {"role": "system", "content": content}
