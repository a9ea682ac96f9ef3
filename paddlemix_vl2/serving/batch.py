"""The sequences that are decoded together. A prompt is read alone; then its cache joins the others'."""

import numpy as np
import paddle

from paddlemix_vl2.generation.decoding import check_finite, mark_not_finite
from paddlemix_vl2.models.layers.kv_cache import ModelCache, round_up_capacity
from paddlemix_vl2.serving.sequence import Sequence


class ContinuousBatch:
    """Rows and their one cache, changed between steps only (iteration-level scheduling, as in Orca, OSDI
    2022).

    The model is known by ``prefill(batch, capacity, chunk_size)`` and ``decode_step(token_ids, cache)``.
    Every method runs in the thread that owns the model.

    Args:
        processor: makes batches of samples, and has the tokenizer.
        chunk_size: positions of a prompt per forward pass.
    """

    def __init__(self, model, processor, chunk_size: int | None = None):
        self.rows: list[Sequence] = []
        self._cache: ModelCache | None = None
        self._model, self._processor, self._chunk_size = model, processor, chunk_size
        ends = np.atleast_1d(model.config.language_config.eos_token_id)
        self._end_tokens = frozenset(int(token) for token in ends)

    def add(self, row: Sequence) -> None:
        """Read a row's prompt and choose its first token; unless that ends it, the row joins.

        Raises:
            ValueError: the model's logits are not finite.
        """
        batch = self._processor.batchify([row.sample])
        row.start(batch, self._processor.tokenizer.backend, self._end_tokens)
        logits, cache = self._model.prefill(
            batch, round_up_capacity(batch["input_ids"].shape[1]), self._chunk_size
        )
        token = int(mark_not_finite(row.choose(logits), logits))
        check_finite([token])
        row.put(token)
        if row.has_ended:
            return
        if self._cache is None:
            self._cache = cache
        else:
            self._cache.append_rows(cache)
        self.rows.append(row)

    def step(self) -> None:
        """Let ended and cancelled rows leave, then decode one token for each of the others."""
        self.drop_ended()
        if not self.rows:
            return
        if self._cache.length == self._cache.capacity:
            self._cache.select_rows(list(range(len(self.rows))))
        tokens = paddle.concat([row.last_token for row in self.rows]).unsqueeze(1)
        logits = self._model.decode_step(tokens, self._cache)
        chosen = [row.choose(logits[index : index + 1]) for index, row in enumerate(self.rows)]
        # The one read of the device per step.
        for row, token in zip(self.rows, paddle.concat(chosen).tolist(), strict=True):
            row.put(token)
        self.drop_ended()

    def drop_ended(self) -> None:
        """Let the rows leave that have ended or been cancelled."""
        staying = [index for index, row in enumerate(self.rows) if not row.has_ended]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in staying]
        if self.rows:
            self._cache.select_rows(staying)
        else:
            self._cache = None

    def fail(self, error: BaseException) -> None:
        """End all rows with an error; the cache may be half written and is given up."""
        rows, self.rows, self._cache = self.rows, [], None
        for row in rows:
            row.answer.finish("error", error)
