"""Questions and answers about pictures: a conversation as the page keeps it, and the model's next answer."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from paddlemix_vl2.figures.boxes import draw_boxes
from paddlemix_vl2.files import save_picture
from paddlemix_vl2.generation.sampling import SamplingParameters
from paddlemix_vl2.generation.streaming import TextIteratorStreamer
from paddlemix_vl2.processing.boxes import parse_boxes
from paddlemix_vl2.processing.conversation import place_pictures
from paddlemix_vl2.processing.pictures import open_picture
from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, USER_TOKEN


class Refusal(ValueError):
    """What the user has to change. ``reason`` and ``values`` choose and fill a sentence of
    :mod:`paddlemix_vl2.web.wording`."""

    def __init__(self, reason: str, **values):
        super().__init__(reason)
        self.reason = reason
        self.values = values


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: as it was typed.
        pictures: files that came with it.
        answer: as the model writes it, with the grounding tokens.
        boxed: file of the picture with the answer's boxes; None without boxes.
        problems: what was wrong with boxes that are left out.
        num_tokens: positions that the conversation takes up to here, with its end token; 0 while the
            answer is written.
        is_cut: whether the answer reached the longest length.
    """

    question: str
    pictures: tuple[Path, ...] = ()
    answer: str = ""
    boxed: Path | None = None
    problems: tuple[str, ...] = ()
    num_tokens: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class Settings:
    """How to answer. A temperature of 0 takes the best token always; ``top_p`` has no effect then.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self):
        SamplingParameters(**self.sampling())
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")

    def sampling(self) -> dict:
        """The sampling arguments of ``generate``."""
        penalty = {"repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {"do_sample": False, **penalty}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, **penalty}


def build_conversation(turns: Sequence[Turn], image_token: str) -> list[dict]:
    """Turns as messages for the processor, the last one open for the model to answer.

    A turn without an answer, which was stopped before its first word, is not part of the conversation.
    """
    *earlier, last = turns
    messages = []
    for turn in [*(turn for turn in earlier if turn.answer.strip()), last]:
        content = place_pictures(turn.question, len(turn.pictures), image_token)
        messages.append({"role": USER_TOKEN, "content": content, "images": list(turn.pictures)})
        # In an answer the token would ask for a picture, which only a question can bring.
        messages.append({"role": ASSISTANT_TOKEN, "content": turn.answer.replace(image_token, "")})
    messages[-1]["content"] = ""
    return messages


class Chat:
    """A model that answers the next question of a conversation.

    Args:
        model: has ``config`` and ``generate``.
        processor: of that model.
        folder: where pictures with boxes are written; it must exist.
        chunk_size: positions of the prompt per forward pass.
    """

    def __init__(self, model, processor, folder: Path, chunk_size: int | None = None):
        self._model = model
        self._processor = processor
        self._folder = folder
        self._chunk_size = chunk_size
        self.limit = model.config.language_config.max_sequence_length

    def ask(
        self,
        turns: Sequence[Turn],
        question: str,
        pictures: Sequence[Path],
        settings: Settings,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Turn]:
        """Answer a question: the new turn, again and again as its answer grows, at last with its boxes.

        Closing the iterator, or ``is_stopped`` after a piece of text, ends the generation.

        Args:
            turns: the conversation so far.
            pictures: files.

        Raises:
            Refusal: the question, a picture or the length is not acceptable.
            ValueError: anything else that the processor or the model refuses.
        """
        turn = Turn(question.strip(), tuple(map(Path, pictures)))
        batch = self._read([*turns, turn])
        length = batch["input_ids"].shape[1]
        if length >= self.limit:
            raise Refusal("full" if turns else "overlong", tokens=length, limit=self.limit)
        longest = min(settings.max_new_tokens, self.limit - length)
        yield turn
        streamer = TextIteratorStreamer(self._processor.tokenizer)
        options = {"max_new_tokens": longest, "chunk_size": self._chunk_size, **settings.sampling()}
        with closing(streamer.run(self._model.generate, **batch, **options)) as pieces:
            for piece in pieces:
                turn = replace(turn, answer=turn.answer + piece)
                yield turn
                if is_stopped():
                    break
        yield self._finish([*turns, turn], length, streamer.result)

    def _read(self, turns: Sequence[Turn]) -> dict:
        """The batch of one conversation; the user's likely mistakes first."""
        image_token, last = self._processor.image_token, turns[-1]
        if not last.question.replace(image_token, "").strip():
            raise Refusal("empty")
        placeholders = last.question.count(image_token)
        if placeholders not in (0, len(last.pictures)):
            raise Refusal("placeholders", placeholders=placeholders, pictures=len(last.pictures))
        messages = build_conversation(turns, image_token)
        for message in messages:
            if "images" in message:
                message["images"] = [_open(file) for file in message["images"]]
        return self._processor(conversations=messages)

    def _finish(self, turns: Sequence[Turn], length: int, result) -> Turn:
        """The last turn with its boxes, on the conversation's last picture, and its length.

        Args:
            result: what ``generate`` returned; None where it was stopped.
        """
        turn = turns[-1]
        if result is None:
            num_new, is_cut = len(self._processor.tokenizer.encode(turn.answer)), False
        else:
            ids = result[0][0].tolist()
            stops = self._model.config.language_config.eos_token_id
            num_new, is_cut = len(ids), ids[-1] not in np.atleast_1d(stops)
        turn = replace(turn, num_tokens=length + num_new, is_cut=is_cut)
        files = [file for one in turns for file in one.pictures]
        if not files:
            return turn
        picture = _open(files[-1])
        found = parse_boxes(turn.answer, picture.size)
        boxed = self._save(draw_boxes(picture, found.objects)) if found.objects else None
        return replace(turn, boxed=boxed, problems=tuple(found.problems))

    def _save(self, picture: Image.Image) -> Path:
        file = Path(tempfile.mkdtemp(dir=self._folder)) / "boxes.png"
        save_picture(picture, file)
        return file


def _open(file: Path) -> Image.Image:
    try:
        return open_picture(file, file.name)
    except ValueError as error:
        raise Refusal("picture", detail=str(error)) from None
