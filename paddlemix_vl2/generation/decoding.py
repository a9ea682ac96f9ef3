"""The decode loop: token ids in, token ids out.

It knows the model by two methods only, ``prefill(batch, capacity, chunk_size)`` and ``decode_step(token_ids,
cache)``, and reads the device once per step, for the tokens themselves.
"""

import numpy as np
import paddle

from paddlemix_vl2 import device
from paddlemix_vl2.generation.sampling import Sampler, SamplingParameters
from paddlemix_vl2.layouts.batch_plan import BatchPlan

_NOT_FINITE = -1


class PromptTooLong(ValueError):
    """A prompt, or prompt and answer together, need more positions than there are."""


def generate(
    model,
    input_ids: paddle.Tensor,
    attention_mask: paddle.Tensor | None = None,
    images: paddle.Tensor | None = None,
    images_seq_mask: paddle.Tensor | None = None,
    images_spatial_crop: paddle.Tensor | None = None,
    plan: BatchPlan | None = None,
    max_new_tokens: int = 512,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | list[int] | None = None,
    streamer=None,
    chunk_size: int | None = None,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Answer a batch of left-padded prompts, greedily or by sampling.

    Args:
        input_ids, attention_mask, images, images_seq_mask, images_spatial_crop, plan: a batch of the
            processor.
        max_new_tokens: longest answer.
        do_sample: sample instead of taking the best token; ``temperature``, ``top_k`` (0: off), ``top_p``
            and ``seed`` apply then.
        repetition_penalty: above 1, makes tokens of prompt and answer less likely.
        eos_token_id: token, or tokens, that end an answer; the config's where absent, none where an empty
            list.
        streamer: has ``put(int64 [B])``, called once per step, and ``end()``.
        chunk_size: positions of the prompt per forward pass; bounds memory, does not change the answer.

    Returns:
        new tokens only, int64 [B, steps], rows that ended earlier filled with their stop token; and the sum
        of the chosen tokens' log-probabilities, float32 [B, 1].

    Raises:
        ValueError: an argument is out of range, or prompt plus answer pass the model's positions.
    """
    language = model.config.language_config
    if attention_mask is None:
        attention_mask = paddle.ones(input_ids.shape, "int64")
    batch_size, prompt_length = input_ids.shape
    check_lengths(prompt_length, max_new_tokens, chunk_size, language.max_sequence_length)
    stops = _stop_tokens(language.eos_token_id if eos_token_id is None else eos_token_id)
    parameters = SamplingParameters(do_sample, temperature, top_k, top_p, repetition_penalty, seed)
    countable = attention_mask.astype("bool")
    if images_seq_mask is not None:
        countable = countable & ~images_seq_mask.astype("bool")
    sampler = Sampler(parameters, batch_size, input_ids, countable)
    batch: dict[str, paddle.Tensor | BatchPlan | None] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "images": images,
        "images_seq_mask": images_seq_mask,
        "images_spatial_crop": images_spatial_crop,
        "plan": plan,
    }

    was_training = model.training
    model.eval()
    try:
        logits, cache = model.prefill(batch, prompt_length + max_new_tokens, chunk_size)
        return _decode(model, sampler, logits, cache, max_new_tokens, stops, streamer)
    finally:
        if was_training:
            model.train()


@paddle.no_grad()
def _decode(model, sampler, logits, cache, max_new_tokens, stops, streamer):
    rows = logits.shape[0]
    answers: list[np.ndarray] = []
    scores = paddle.zeros([rows], "float32")
    alive = np.ones(rows, bool)
    fill = np.full(rows, stops[0] if len(stops) else 0, np.int64)  # tokens of ended rows
    try:
        while True:
            chosen, log_probs = sampler.next_token(logits)
            if not answers:
                chosen = mark_not_finite(chosen, logits)
            read = chosen.numpy()  # the one read of the device per step
            check_finite(read)
            tokens = np.where(alive, read, fill)
            scores += log_probs * device.to_tensor(alive.astype(np.float32))
            answers.append(tokens)
            if streamer is not None:
                streamer.put(tokens)
            ended = alive & np.isin(tokens, stops)
            fill[ended] = tokens[ended]
            alive &= ~ended
            if not alive.any() or len(answers) == max_new_tokens:
                break
            logits = model.decode_step(device.to_tensor(tokens).unsqueeze(1), cache)
    finally:
        if streamer is not None:
            streamer.end()
    return device.to_tensor(np.stack(answers, axis=1)), scores.unsqueeze(1)


def mark_not_finite(token_ids: paddle.Tensor, logits: paddle.Tensor) -> paddle.Tensor:
    """The tokens int64 [B] that were chosen from logits [B, V], with a mark where these are not finite: it is
    read together with them."""
    finite = paddle.isfinite(logits).all(axis=-1)
    return paddle.where(finite, token_ids, paddle.full_like(token_ids, _NOT_FINITE))


def check_finite(token_ids: np.ndarray | list[int]) -> None:
    """Refuse tokens that :func:`mark_not_finite` has marked.

    Raises:
        ValueError: the model cannot compute.
    """
    if _NOT_FINITE in token_ids:
        raise ValueError(
            "the model's logits are not finite: its weights are damaged, or too large for their dtype"
        )


def _stop_tokens(eos_token_id) -> np.ndarray:
    return np.atleast_1d(np.asarray(eos_token_id, dtype=np.int64))


def check_lengths(prompt_length: int, max_new_tokens: int, chunk_size: int | None, limit: int) -> None:
    """Refuse lengths that do not fit the model.

    Args:
        prompt_length: positions of the prompt, padding included.
        limit: positions that the model has.

    Raises:
        ValueError: a length is below 1.
        PromptTooLong: prompt and answer together pass the limit.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    if prompt_length + max_new_tokens > limit:
        raise PromptTooLong(
            f"the prompt has {prompt_length} tokens and max_new_tokens is {max_new_tokens}, together "
            f"{prompt_length + max_new_tokens}, but the model has {limit} positions "
            "(max_position_embeddings); ask for fewer new tokens, or send fewer or smaller pictures"
        )
