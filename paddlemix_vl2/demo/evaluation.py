"""Asking a model every kind of question."""

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image

from paddlemix_vl2.demo.questions import KINDS, SyntheticQuestion
from paddlemix_vl2.demo.samples import make_question, prompt_messages
from paddlemix_vl2.demo.scoring import is_right
from paddlemix_vl2.demo.vocabulary import LANGUAGES
from paddlemix_vl2.generation.batched import GenerationLimits, answer_conversations

# The longest answer names five things with their boxes.
MAX_NEW_TOKENS = 160


class Answered(NamedTuple):
    """A question and what the model said to it."""

    question: SyntheticQuestion
    answer: str
    right: bool


def evaluate(
    model,
    processor,
    split: str = "test",
    samples_per_kind: int = 50,
    batch_size: int = 32,
    kinds: Iterable[str] = KINDS,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Iterator[list[Answered]]:
    """Ask, greedily, ``samples_per_kind`` questions of every kind in every language, a batch at a time.

    Args:
        model: has ``generate(**batch, max_new_tokens=...)``, which returns new ids only, int64 [B, steps].
        processor: a ``DeepseekVLV2Processor``.
    """
    for kind in kinds:  # answers of one kind are about equally long
        names = [(index, language) for index in range(samples_per_kind) for language in LANGUAGES]
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            asked = [make_question(kind, split, index, language) for index, language in batch]
            texts = answer_all(model, processor, asked, max_new_tokens)
            yield [
                Answered(question, text, is_right(question, text))
                for (_, question), text in zip(asked, texts, strict=True)
            ]


def answer_all(
    model,
    processor,
    asked: list[tuple[list[Image.Image], SyntheticQuestion]],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """The model's answers to questions about pictures, as one batch."""
    limits = GenerationLimits(max_new_tokens, batch_size=len(asked), batch_tokens=sys.maxsize)
    conversations = enumerate(prompt_messages(images, question) for images, question in asked)
    return [answer.text for answer in answer_conversations(model, processor, conversations, limits)]
