"""Samples of different lengths, picture counts and tile counts in one batch: the only code that pads.

Padding is on the left, so that the last position of every row is the one that predicts the next token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlemix_vl2 import device


@dataclass
class Sample:
    """One conversation, ready for the model except for padding (numpy arrays; T tokens, P pictures, N views).

    Attributes:
        input_ids: int64 [T].
        labels: int64 [T], not shifted; ``ignore_id`` where nothing is to be learned.
        images: float32 [N, 3, S, S]: for each picture its global view, then its tiles. Without pictures one
            view of zeros.
        images_seq_mask: bool [T], True at image tokens.
        images_spatial_crop: int64 [P, 2], tiles in width and in height of each picture. Without pictures
            [[0, 0]].
        num_image_tokens: length of each picture's token span.
        text: the prompt before pictures were expanded, as it was tokenised, without begin- and
            end-of-sentence tokens.
        inference_mode: whether the prompt is left open for the model to continue.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    images_seq_mask: np.ndarray
    images_spatial_crop: np.ndarray
    num_image_tokens: list[int]
    text: str
    inference_mode: bool


def pad_samples(samples: Sequence[Sample], pad_id: int, ignore_id: int) -> dict[str, np.ndarray]:
    """One batch (B samples, T the longest, N the most views, P the most pictures).

    Returns:
        input_ids            int64 [B, T], ``pad_id`` on the left
        attention_mask       int64 [B, T], 0 on padding
        images               float32 [B, N, 3, S, S], unused views zero
        images_seq_mask      bool [B, T]
        images_spatial_crop  int64 [B, P, 2], unused rows [0, 0]
        labels               int64 [B, T], ``ignore_id`` on padding; for training samples only. The first
                             token of a sample is not supervised either: alone, nothing stands before it to
                             predict it, and behind padding the padding would.

    Raises:
        ValueError: no samples, or training samples among inference samples.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    modes = [sample.inference_mode for sample in samples]
    if len(set(modes)) > 1:
        raise ValueError(
            f"{sum(modes)} of {len(modes)} samples are made with inference_mode=True, the others without; "
            "a batch is of one kind"
        )
    batch = {
        "input_ids": pad_left([sample.input_ids for sample in samples], pad_id),
        "attention_mask": pad_left([np.ones_like(sample.input_ids) for sample in samples], 0),
        "images": pad_right([sample.images for sample in samples]),
        "images_seq_mask": pad_left([sample.images_seq_mask for sample in samples], False),
        "images_spatial_crop": pad_right([sample.images_spatial_crop for sample in samples]),
    }
    if not modes[0]:
        labels = pad_left([sample.labels[1:] for sample in samples], ignore_id)
        batch["labels"] = np.pad(labels, [(0, 0), (1, 0)], constant_values=ignore_id)
    return batch


def to_paddle(batch: dict[str, np.ndarray]) -> dict:
    """The same batch as Paddle tensors on the current device."""
    return {name: device.to_tensor(array) for name, array in batch.items()}


def pad_left(rows: Sequence[np.ndarray], value) -> np.ndarray:
    """[t_i] each -> [B, longest t], ``value`` in front."""
    longest = max(len(row) for row in rows)
    padded = np.full((len(rows), longest), value, dtype=rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[longest - len(row) :] = row
    return padded


def pad_right(blocks: Sequence[np.ndarray], at_least: int = 0) -> np.ndarray:
    """[n_i, ...] each -> [B, n, ...], n the largest n_i or ``at_least`` if that is more; zeros behind."""
    longest = max(at_least, *(len(block) for block in blocks))
    padded = np.zeros((len(blocks), longest, *blocks[0].shape[1:]), dtype=blocks[0].dtype)
    for target, block in zip(padded, blocks, strict=True):
        target[: len(block)] = block
    return padded
