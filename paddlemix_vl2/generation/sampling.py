"""From logits to the next token: repetition penalty, then greedy, or temperature, top-k, top-p and sampling.

The order is that of the published inference script: the penalty on the raw logits, then temperature, then
top-k, then top-p over what top-k has left, renormalised.

PaddleNLP's ``paddlenlp.generation.logits_process`` is not used here, for these reasons: its ``TopPProcess``
does not renormalise behind ``TopKProcess``, so that the nucleus comes out too large, and sorts the vocabulary
twice to sort it once; ``TopKProcess`` keeps more than k tokens on ties; ``RepetitionPenaltyLogitsProcessor``
takes every position of the prompt, also padding and image placeholders, and the whole history again in each
step; and the sampling that follows uses Paddle's global generator.

``paddle.nn.functional.log_softmax`` is avoided: over a vocabulary of this size it takes seconds on the CPU
(Paddle 3.3.1), where softmax takes less than a millisecond. The logarithm is taken of the chosen
probabilities only.
"""

import math
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from paddlemix_vl2 import device

# Uniform numbers go to the device for so many steps at once; it does not change which numbers they are.
_DRAWS_PER_COPY = 64
# Below, float32 has no such number; long before, sampling is the greedy choice.
_LOWEST_TEMPERATURE = 1e-37
# On the CPU, top-p looks at so many of the most likely tokens before it sorts the whole vocabulary.
_SHORT_LIST = 1024


@dataclass(frozen=True)
class SamplingParameters:
    """How a token is chosen; checked when made.

    Attributes:
        do_sample: sample a token; False takes the most likely one, and everything below but the penalty has
            no effect.
        temperature: divides the logits; below 1 sharpens, above 1 flattens.
        top_k: keep that many of the most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches ``top_p``; the token that
            reaches it is kept, so that at least one is.
        repetition_penalty: above 1 makes tokens of the prompt and of the answer less likely (arXiv
            1909.05858).
        seed: makes sampling reproducible, each row of a batch by itself; None: other samples each time.

    Raises:
        ValueError: a value is out of its range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def asked_for(
        cls,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> "SamplingParameters":
        """The parameters for what a user has given: greedy, unless one of the first three asks for sampling.
        A temperature of 0 is greedy too, and ``top_k`` 0 is off."""
        asked = [value for value in (temperature, top_p, None if top_k == 0 else top_k) if value is not None]
        if not asked or temperature == 0:
            return cls(repetition_penalty=repetition_penalty, seed=seed)
        return cls(
            do_sample=True,
            temperature=cls.temperature if temperature is None else temperature,
            top_k=cls.top_k if top_k is None else top_k,
            top_p=cls.top_p if top_p is None else top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )

    def __post_init__(self):
        is_warm = _is_positive(self.temperature) and self.temperature >= _LOWEST_TEMPERATURE
        _check("temperature", self.temperature, is_warm, "a number above 0 (1e-37 or more)")
        _check("top_k", self.top_k, _is_natural(self.top_k), "a whole number, 0 (off) or more")
        in_range = _is_positive(self.top_p) and self.top_p <= 1
        _check("top_p", self.top_p, in_range, "a number above 0 and at most 1 (off)")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, _is_positive(penalty), "a number above 0 (1: off)")
        is_seed = self.seed is None or _is_natural(self.seed)
        _check("seed", self.seed, is_seed, "a whole number, 0 or more, or None")


def _is_positive(value) -> bool:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(0 < value < math.inf)


def _is_natural(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _check(name: str, value, is_good: bool, expected: str) -> None:
    if not is_good:
        raise ValueError(f"{name} is {value!r}; it must be {expected}")


class Sampler:
    """Chooses the next token of every row of a batch, in float32, and leaves it on the device.

    One generator of numpy per row, seeded with (seed, row), gives one uniform number per step, which is
    looked up in the cumulative distribution on the device. So a row's answer does not depend on the other
    rows, and Paddle's global generator is neither used nor moved.

    Args:
        parameters: how to choose.
        batch_size: rows.
        prompt_ids: int64 [B, T]; needed for the repetition penalty only.
        prompt_mask: bool [B, T], True where a prompt token counts as said: not on padding, not on image
            placeholders. All count where absent.
    """

    _draws: paddle.Tensor  # float32 [B, _DRAWS_PER_COPY]; there from the first step on

    def __init__(
        self,
        parameters: SamplingParameters,
        batch_size: int,
        prompt_ids: paddle.Tensor | None = None,
        prompt_mask: paddle.Tensor | None = None,
    ):
        self.parameters = parameters
        self._prompt = (prompt_ids, prompt_mask)
        # float32 [B * (V + 1)]; made with the first logits, which give V.
        self._penalties: paddle.Tensor | None = None
        seed = parameters.seed
        self._generators = [
            np.random.default_rng() if seed is None else np.random.default_rng([seed, row])
            for row in range(batch_size)
        ]
        self._step = 0

    @paddle.no_grad()
    def next_token(self, logits: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Choose one token per row.

        Args:
            logits: [B, V], any floating dtype.

        Returns:
            ids int64 [B], and float32 [B]: the logarithm of each one's probability under the distribution
            that it was chosen from (penalty applied; when sampling also temperature, top-k and top-p).
        """
        logits = self._penalise(logits.astype("float32"))
        if self.parameters.do_sample:
            # Without the subtraction a very low temperature would lift the best logit beyond float32.
            distances = logits - logits.max(axis=-1, keepdim=True)
            ids, log_probs = self._draw(distances / self.parameters.temperature)
        else:
            ids = logits.argmax(axis=-1)
            chosen = paddle.take_along_axis(F.softmax(logits), ids.unsqueeze(1), axis=1)
            log_probs = paddle.log(chosen).squeeze(1)
        self._remember(ids)
        self._step += 1
        return ids, log_probs

    def _penalise(self, logits: paddle.Tensor) -> paddle.Tensor:
        if self.parameters.repetition_penalty == 1:
            return logits
        rows, vocabulary = logits.shape
        penalties = self._penalties
        if penalties is None:
            said = _said_in_prompt(rows, vocabulary, *self._prompt)
            penalties = self._penalties = paddle.ones([rows * (vocabulary + 1)], "float32")
            self._add_penalties(penalties, said)
        penalties = penalties.reshape([rows, vocabulary + 1])[:, :vocabulary]
        return paddle.where(logits < 0, logits * penalties, logits / penalties)

    def _add_penalties(self, penalties: paddle.Tensor, places: paddle.Tensor) -> None:
        penalty = paddle.full(places.shape, self.parameters.repetition_penalty, "float32")
        paddle.scatter_(penalties, places, penalty)

    def _remember(self, ids: paddle.Tensor) -> None:
        if self._penalties is not None:
            rows = ids.shape[0]
            row_starts = paddle.arange(rows, dtype="int64") * (self._penalties.shape[0] // rows)
            self._add_penalties(self._penalties, row_starts + ids)

    def _draw(self, logits):
        """logits [B, V] -> ids int64 [B], log-probabilities float32 [B]."""
        probabilities, tokens = self._candidates(logits)  # [B, K]
        cumulative = probabilities.cumsum(axis=-1)
        reach = cumulative[:, -1:]
        if self.parameters.top_p < 1:
            reach = paddle.clip(reach, max=self.parameters.top_p)
        last = paddle.searchsorted(cumulative, reach)  # rank of the token that reaches top_p
        mass = paddle.take_along_axis(cumulative, last, axis=1)
        target = self._uniform() * mass
        # Rounding may lift target up to mass itself; what lies behind ``last`` must still not be chosen.
        rank = paddle.minimum(paddle.searchsorted(cumulative, target, right=True), last)
        log_probs = paddle.log(paddle.take_along_axis(probabilities, rank, axis=1) / mass)
        ids = rank if tokens is None else paddle.take_along_axis(tokens, rank, axis=1)
        return ids.squeeze(1), log_probs.squeeze(1)

    def _candidates(self, logits):
        """Probabilities [B, K], most likely first where top-k or top-p ask for it, and their token ids (None:
        the whole vocabulary in its order)."""
        top_k, top_p, vocabulary = self.parameters.top_k, self.parameters.top_p, logits.shape[-1]
        if 0 < top_k < vocabulary:
            values, tokens = paddle.topk(logits, top_k)
            return F.softmax(values), tokens
        if top_p == 1:
            return F.softmax(logits), None
        probabilities = F.softmax(logits)
        if logits.place.is_cpu_place() and vocabulary > _SHORT_LIST:
            # Reading a number costs nothing here, and a full sort takes several times as long as this list.
            likely, tokens = paddle.topk(probabilities, _SHORT_LIST)
            if float(likely.sum(axis=-1).min()) >= top_p:
                return likely, tokens
        return paddle.topk(probabilities, vocabulary)

    def _uniform(self) -> paddle.Tensor:
        """float32 [B, 1] in [0, 1): the numbers of this step."""
        column = self._step % _DRAWS_PER_COPY
        if column == 0:
            draws = [generator.random(_DRAWS_PER_COPY, dtype=np.float32) for generator in self._generators]
            self._draws = device.to_tensor(np.stack(draws))
        return self._draws[:, column : column + 1]


def _said_in_prompt(rows: int, vocabulary: int, prompt_ids, prompt_mask) -> paddle.Tensor:
    """int64 [B * T]: where the tokens of the prompts lie in [B * (V + 1)]. What does not count lies in the
    spare column."""
    if prompt_ids is None:
        return paddle.zeros([0], "int64")
    if prompt_mask is not None:
        spare = paddle.full_like(prompt_ids, vocabulary)
        prompt_ids = paddle.where(prompt_mask.astype("bool"), prompt_ids, spare)
    row_starts = paddle.arange(rows, dtype="int64").unsqueeze(1) * (vocabulary + 1)
    return (row_starts + prompt_ids).flatten()
