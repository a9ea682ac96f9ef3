"""Many conversations to answers: prepared, sorted by length, answered greedily in batches.

::

    conversations -- process_one --> a window of samples -- sort by length --> batches -- generate --> answers

A picture is most of a prompt's length, so that batches of equal length are batches of equally many tiles. The
answers of a batch are those that each conversation gets alone; how they are batched changes the speed only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from paddlemix_vl2.generation.decoding import check_lengths

# Batches that are prepared and sorted together. More would be sorted better; the pictures of a window are in
# memory at once, 1.8 MB for each tile of 384 x 384.
_BATCHES_PER_WINDOW = 4


@dataclass(frozen=True)
class GenerationLimits:
    """How large batches and answers may be.

    Attributes:
        max_new_tokens: longest answer.
        batch_size: most conversations of a batch.
        batch_tokens: most positions of a batch, prompts with their padding and answers. A single conversation
            that needs more is a batch of its own.
        max_length: positions of the model; longer conversations get an error instead of an answer. None: not
            checked.

    Raises:
        ValueError: one of them is below 1.
    """

    max_new_tokens: int = 512
    batch_size: int = 8
    batch_tokens: int = 16_384
    max_length: int | None = None

    def __post_init__(self):
        for name in ("max_new_tokens", "batch_size", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class ConversationAnswer(NamedTuple):
    """What the model said to conversation ``number``, or why it was not asked; the other one is None.

    ``text`` has its special tokens, boxes being written with them, up to the end-of-sentence token.
    """

    number: int
    text: str | None
    error: str | None = None


def answer_conversations(
    model, processor, conversations: Iterable[tuple[int, list[dict] | ValueError]], limits: GenerationLimits
) -> Iterator[ConversationAnswer]:
    """Answer numbered conversations, a window of them at a time.

    Args:
        model: has ``generate(**batch, max_new_tokens=...)``, which returns new ids only, int64 [B, steps].
        processor: a ``DeepseekVLV2Processor``.
        conversations: a number and the messages; or the error of a conversation that could not be read, which
            is passed on. They are taken one window at a time.

    Yields:
        one answer for each conversation, batch by batch and so not in their order: what is written at once is
        not lost when the program ends. What the processor refuses, or does not fit, becomes an ``error``.

    Raises:
        ValueError: the model cannot compute.
    """
    conversations = iter(conversations)
    while window := list(islice(conversations, _BATCHES_PER_WINDOW * limits.batch_size)):
        samples = {}
        for number, conversation in window:
            try:
                samples[number] = _prepare(processor, conversation, limits)
            except (ValueError, OSError) as error:
                yield ConversationAnswer(number, None, " ".join(str(error).split()))
        lengths = {number: len(sample.input_ids) for number, sample in samples.items()}
        for batch in form_batches(lengths, limits):
            texts = _generate(model, processor, [samples.pop(number) for number in batch], limits)
            yield from map(ConversationAnswer, batch, texts)


def form_batches(lengths: dict[int, int], limits: GenerationLimits) -> list[list[int]]:
    """Batches of conversations of similar length, the longest first.

    Args:
        lengths: number of a conversation -> tokens of its prompt.

    >>> form_batches({0: 500, 1: 20, 2: 480, 3: 25}, GenerationLimits(max_new_tokens=10, batch_size=2))
    [[0, 2], [1, 3]]
    """
    batches: list[list[int]] = []
    positions = 0
    # The longest first: what does not fit into memory shows at once.
    for number in sorted(lengths, key=lambda number: -lengths[number]):
        fits = batches and len(batches[-1]) < limits.batch_size
        if fits and (len(batches[-1]) + 1) * positions <= limits.batch_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
            positions = lengths[number] + limits.max_new_tokens
    return [sorted(batch) for batch in batches]


def _prepare(processor, conversation: list[dict] | ValueError, limits: GenerationLimits):
    if isinstance(conversation, ValueError):
        raise conversation
    sample = processor.process_one(conversation)
    if limits.max_length is not None:
        check_lengths(len(sample.input_ids), limits.max_new_tokens, None, limits.max_length)
    return sample


def _generate(model, processor, samples: list, limits: GenerationLimits) -> list[str]:
    ids, _ = model.generate(**processor.batchify(samples), max_new_tokens=limits.max_new_tokens)
    tokenizer = processor.tokenizer
    return [tokenizer.decode(_until(row, tokenizer.eos_token_id)) for row in ids.numpy().tolist()]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
