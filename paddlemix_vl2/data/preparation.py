"""From a record to a training sample that is no longer than a sequence may be."""

import dataclasses

import numpy as np

from paddlemix_vl2.data.record import BrokenSample, Record, TooLong
from paddlemix_vl2.data.sources import Source
from paddlemix_vl2.processing.batching import Sample
from paddlemix_vl2.processing.processor import DeepseekVLV2Processor

TOO_LONG = ("refuse", "shorten")


def prepare(
    record: Record, processor: DeepseekVLV2Processor, max_length: int, too_long: str = "refuse"
) -> Sample:
    """Tokenise a record and read its pictures.

    Args:
        max_length: tokens that a sample may have, image tokens included.
        too_long: what to do with more. "refuse", or "shorten": a conversation loses whole turns of user and
            assistant at its end, with their pictures; a plain text is cut. The tokens of a picture are never
            cut.

    Returns:
        a sample with ``inference_mode`` False; a plain text is begin + text + end, all of it supervised.

    Raises:
        TooLong: it does not fit, or not even its first turn does.
        BrokenSample: a picture cannot be read, or the processor refuses the record.
        ValueError: ``too_long`` is neither.
    """
    check_too_long(too_long)
    try:
        if record.messages is None:
            sample = processor.process_one(prompt=record.text, inference_mode=False)
            if len(sample.input_ids) > max_length and too_long == "shorten":
                return _cut(sample, max_length)
        else:
            sample = processor.process_one(record.messages, inference_mode=False)
            if len(sample.input_ids) > max_length and too_long == "shorten":
                sample = _drop_turns(record.messages, sample, processor, max_length)
    except (ValueError, OSError) as error:
        raise BrokenSample(record.place, str(error)) from None
    if len(sample.input_ids) > max_length:
        kept = " even with one turn" if too_long == "shorten" else ""
        raise TooLong(
            record.place, f"has {len(sample.input_ids)} tokens{kept}; a sequence may have {max_length}"
        )
    return sample


def prepare_item(
    source: Source, index: int, processor: DeepseekVLV2Processor, max_length: int, too_long: str
) -> Sample:
    """Read and prepare one sample of a source.

    Raises:
        BrokenSample: the sample cannot be used.
        RuntimeError: anything else went wrong; the message begins with the sample's place.
    """
    try:
        return prepare(source[index], processor, max_length, too_long)
    except BrokenSample:
        raise
    except Exception as error:
        place = source.place(index)
        raise RuntimeError(f"{place}: {type(error).__name__}: {error}") from error


def check_too_long(too_long: str) -> None:
    """Raise ``ValueError`` unless ``too_long`` is one of the rules."""
    if too_long not in TOO_LONG:
        raise ValueError(f"too_long is {too_long!r}; use one of {', '.join(TOO_LONG)}")


def _cut(sample: Sample, max_length: int) -> Sample:
    """The beginning of a plain text. It has no end token: the text goes on."""
    return dataclasses.replace(
        sample,
        input_ids=sample.input_ids[:max_length],
        labels=sample.labels[:max_length],
        images_seq_mask=sample.images_seq_mask[:max_length],
    )


def _drop_turns(
    messages: list[dict], sample: Sample, processor: DeepseekVLV2Processor, max_length: int
) -> Sample:
    """Without turns at the end until it fits, or with the first turn only."""
    turns = sum(message["role"] == messages[-1]["role"] for message in messages)
    while turns > 1 and len(sample.input_ids) > max_length:
        # Every answer ends with the end token, so its positions say how many turns fit.
        ends = np.flatnonzero(sample.input_ids == processor.tokenizer.eos_token_id)
        fitting = int(np.searchsorted(ends, max_length)) if len(ends) == turns else turns - 1
        # Measured again: with fewer pictures left these may be tiled, which makes them longer.
        dropped = turns - min(max(fitting, 1), turns - 1)
        messages = messages[: len(messages) - 2 * dropped]
        turns -= dropped
        sample = processor.process_one(messages, inference_mode=False)
    return sample
