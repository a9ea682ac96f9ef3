"""One conversation while it is decoded."""

from collections import abc
from dataclasses import dataclass, field
from typing import Any

import paddle

from paddlemix_vl2.generation.sampling import Sampler, SamplingParameters
from paddlemix_vl2.generation.streaming import RowDecoder
from paddlemix_vl2.processing.batching import Sample
from paddlemix_vl2.serving.stop_strings import StopFilter
from paddlemix_vl2.serving.stream import RequestOutput


@dataclass(frozen=True)
class GenerationRequest:
    """What is asked for.

    Attributes:
        conversation: messages as ``DeepseekVLV2Processor.process_one`` takes them.
        images: the conversation's pictures in order; None where the messages name them.
        sampling: how tokens are chosen; greedily by default.
        max_tokens: longest answer in tokens; the service's default where None.
        stop: strings that end the answer and are not part of it.
    """

    conversation: abc.Sequence[dict]
    images: abc.Sequence[Any] | None = None
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    max_tokens: int | None = None
    stop: abc.Sequence[str] = ()

    def __post_init__(self):
        if isinstance(self.stop, str) or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a list of strings that are not empty")


class Sequence:
    """A row of the batch: what chooses its tokens, what makes text of them, and when it ends.

    Attributes:
        sample: the prompt, until it has been read.
        last_token: what the next step is fed with, int64 [1].
    """

    def __init__(self, sample: Sample, request: GenerationRequest, max_tokens: int, answer: RequestOutput):
        self.sample: Sample | None = sample
        self.answer = answer
        self.last_token: paddle.Tensor | None = None
        # Not the request itself: its pictures would stay until the answer ends.
        self._sampling, self._stop = request.sampling, request.stop
        self._max_tokens = max_tokens

    def start(self, batch: dict, backend, end_tokens: frozenset[int]) -> None:
        """Prepare for the first token.

        Args:
            batch: the sample as a batch of one.
            backend: a ``tokenizers.Tokenizer``.
            end_tokens: tokens that end an answer.
        """
        self.sample = None  # its pictures are not needed any more, and are the most of it
        countable = ~batch["images_seq_mask"].astype("bool")
        self._sampler = Sampler(self._sampling, 1, batch["input_ids"], countable)
        self._decoder = RowDecoder(backend, end_tokens)
        self._filter = StopFilter(self._stop)
        self._end_tokens = end_tokens

    def choose(self, logits: paddle.Tensor) -> paddle.Tensor:
        """The next token, int64 [1], of logits [1, V]; it stays on the device."""
        self.last_token = self._sampler.next_token(logits)[0]
        return self.last_token

    def put(self, token: int) -> None:
        """Take the token that was chosen, hand its text on, and end the answer where it ends."""
        try:
            self._put(token)
        # The tokenizer's library raises plain Exception; the other rows continue.
        except Exception as error:
            self.answer.finish("error", error)

    def _put(self, token: int) -> None:
        answer = self.answer
        num_tokens = answer.count_token()
        answer.put(self._filter.put(self._decoder.put(token)))
        if self._filter.found:
            answer.finish("stop")
        elif token in self._end_tokens:
            answer.put(self._filter.finish())
            answer.finish("stop")
        elif num_tokens == self._max_tokens:
            answer.put(self._filter.put(self._decoder.finish()) + self._filter.finish())
            answer.finish("stop" if self._filter.found else "length")

    @property
    def has_ended(self) -> bool:
        """Whether the row can leave; a cancelled one ends here."""
        if self.answer.is_cancelled:
            self.answer.finish("cancelled")
        return self.answer.finish_reason is not None
