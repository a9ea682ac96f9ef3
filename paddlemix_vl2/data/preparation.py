"""From a record to a training sample that is no longer than a sequence may be."""

import dataclasses

import numpy as np

from paddlemix_vl2.data.records import BrokenSample, Overlong, Record
from paddlemix_vl2.data.sources import Source
from paddlemix_vl2.processing.batching import Sample
from paddlemix_vl2.processing.conversation import Conversation
from paddlemix_vl2.processing.processor import VisionLanguageProcessor

OVERLONG = ("skip", "truncate")


def prepare(
    record: Record, processor: VisionLanguageProcessor, max_length: int, overlong: str = "skip"
) -> Sample:
    """Tokenise a record and read its pictures.

    Args:
        max_length: tokens that a sample may have, image tokens included.
        overlong: what to do with more. "skip", or "truncate": a conversation loses whole turns of user and
            assistant at its end, with their pictures; a plain text is cut. The tokens of a picture are never
            cut.

    Returns:
        a sample with ``inference_mode`` False; a plain text is begin + text + end, all of it with labels.

    Raises:
        Overlong: it does not fit, or not even its first turn does.
        BrokenSample: a picture cannot be read, or the processor refuses the record.
        ValueError: ``overlong`` is neither.
    """
    check_overlong(overlong)
    try:
        if record.conversation is None:
            sample = processor.process_one(prompt=record.text, inference_mode=False)
            if len(sample.input_ids) > max_length and overlong == "truncate":
                return _cut(sample, max_length)
        else:
            sample = processor.process_one(record.conversation)
            if len(sample.input_ids) > max_length and overlong == "truncate":
                sample = _drop_turns(record.conversation, sample, processor, max_length)
    except (ValueError, OSError) as error:
        raise BrokenSample(record.place, str(error)) from None
    if len(sample.input_ids) > max_length:
        kept = " even with one turn" if overlong == "truncate" else ""
        raise Overlong(
            record.place, f"has {len(sample.input_ids)} tokens{kept}; a sequence may have {max_length}"
        )
    return sample


def prepare_item(
    source: Source, index: int, processor: VisionLanguageProcessor, max_length: int, overlong: str
) -> Sample:
    """Read and prepare one sample of a source.

    Raises:
        BrokenSample: the sample cannot be used.
        RuntimeError: anything else went wrong; the message begins with the sample's place.
    """
    try:
        return prepare(source[index], processor, max_length, overlong)
    except BrokenSample:
        raise
    except Exception as error:
        place = source.place(index)
        raise RuntimeError(f"{place}: {type(error).__name__}: {error}") from error


def check_overlong(overlong: str) -> None:
    """Raise ``ValueError`` unless ``overlong`` is one of the rules."""
    if overlong not in OVERLONG:
        raise ValueError(f"overlong is {overlong!r}; use one of {', '.join(OVERLONG)}")


def _cut(sample: Sample, max_length: int) -> Sample:
    """The beginning of a plain text. It has no end token, since the text does not end there."""
    return dataclasses.replace(
        sample,
        input_ids=sample.input_ids[:max_length],
        labels=sample.labels[:max_length],
        images_seq_mask=sample.images_seq_mask[:max_length],
    )


def _drop_turns(
    conversation: Conversation, sample: Sample, processor: VisionLanguageProcessor, max_length: int
) -> Sample:
    """Without turns at the end until it fits, or with the first turn only."""
    while (turns := conversation.num_turns) > 1 and len(sample.input_ids) > max_length:
        # Every answer ends with the end token, so its positions say how many turns fit.
        ends = np.flatnonzero(sample.input_ids == processor.tokenizer.eos_token_id)
        fitting = int(np.searchsorted(ends, max_length)) if len(ends) == turns else turns - 1
        # Measured again: with fewer pictures left these may be tiled, which makes them longer.
        conversation = conversation.drop_turns(turns - min(max(fitting, 1), turns - 1))
        sample = processor.process_one(conversation)
    return sample
