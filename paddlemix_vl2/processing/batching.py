"""Pads samples of different lengths, picture counts and tile counts to one batch. No other code pads.

Padding is on the left, so that the last position of every row is the one that predicts the next token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlemix_vl2 import device
from paddlemix_vl2.layouts.batch_plan import plan_rows
from paddlemix_vl2.layouts.fusion_plan import Layout, plan_fusion


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
        inference_mode: whether the prompt is left open for the model to continue.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    images_seq_mask: np.ndarray
    images_spatial_crop: np.ndarray
    num_image_tokens: list[int]
    inference_mode: bool


class Batch(dict[str, Any]):
    """What ``model(**batch)`` takes: arrays of numpy, or tensors after :meth:`to_tensors` (B rows, T the
    longest, N the most views, P the most pictures of a row). Its entries are attributes too.

    ===================  ================================================================================
    input_ids            int64 [B, T], padded on the left
    attention_mask       int64 [B, T], 0 on padding; where rows hold one sample each
    segment_ids          int64 [B, T], 1, 2, ... for the samples of a row, 0 on padding; of packed rows
    images               float32 [B, N, 3, S, S], unused views zero
    images_seq_mask      bool [B, T], True at image tokens
    images_spatial_crop  int64 [B, P, 2], unused rows [0, 0]
    labels               int64 [B, T], not shifted, ``ignore_id`` where nothing is learned; for training
    plan                 a :class:`~paddlemix_vl2.layouts.batch_plan.BatchPlan`: what the host knows of the
                         batch, so that nothing has to be read back from the device
    ===================  ================================================================================
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the batch has no {name}") from None

    def to_tensors(self) -> "Batch":
        """The same batch as Paddle tensors on the current device."""
        arrays = {name: value for name, value in self.items() if name != "plan"}
        tensors = device.to_tensors(*arrays.values())
        return Batch(self, **dict(zip(arrays, tensors, strict=True)))


def pad_samples(samples: Sequence[Sample], pad_id: int, ignore_id: int, layout: Layout) -> Batch:
    """One batch of samples of one kind. The first token of a training sample has no label: only padding is
    before it.

    Args:
        layout: of the image tokens.

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
    labels: dict[str, np.ndarray] = {}
    if not modes[0]:
        learned = pad_left([sample.labels[1:] for sample in samples], ignore_id)
        labels["labels"] = np.pad(learned, [(0, 0), (1, 0)], constant_values=ignore_id)
    input_ids = pad_left([sample.input_ids for sample in samples], pad_id)
    images = pad_right([sample.images for sample in samples])
    marks = pad_left([sample.images_seq_mask for sample in samples], False)
    crop = pad_right([sample.images_spatial_crop for sample in samples])
    # The views are the processor's, which repeats some of them.
    fusion = plan_fusion(layout, crop, marks, images.shape[1], drop_repeated=True)
    padding = [input_ids.shape[1] - len(sample.input_ids) for sample in samples]
    return Batch(
        input_ids=input_ids,
        images=images,
        images_seq_mask=marks,
        images_spatial_crop=crop,
        plan=plan_rows(padding, input_ids.shape[1], fusion, labels.get("labels")),
        attention_mask=pad_left([np.ones_like(sample.input_ids) for sample in samples], 0),
        **labels,
    )


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
