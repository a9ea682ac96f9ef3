"""A tokenizer and a processor as the demonstration model has them."""

import numpy as np
import pytest

from paddlemix_vl2.demo.tokenizer import build_tokenizer, collect_texts
from paddlemix_vl2.processing import DeepseekVLV2Processor

RESOLUTIONS = [[84, 84], [84, 168], [168, 84], [168, 168], [84, 252], [252, 84]]


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(collect_texts())


@pytest.fixture(scope="session")
def processor(tokenizer):
    return DeepseekVLV2Processor(tokenizer, RESOLUTIONS, mask_prompt=True)


@pytest.fixture
def rng():
    return np.random.default_rng(5)
