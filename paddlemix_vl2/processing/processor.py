"""What the processors of all families share: conversations and pictures in, batches for the model out.

::

    messages     --Conversation.parse--> Conversation, checked
    Conversation --template--> pieces of text with their pictures
    piece        --tokenize_with_images--> ids, views, image mask, tile grids
    pieces       --process_one--> Sample (numpy)
    samples      --batchify--> Batch (Paddle tensors)
"""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np
from PIL import Image

from paddlemix_vl2.config.checks import check_key
from paddlemix_vl2.files import read_object, write_object
from paddlemix_vl2.hub import PROCESSOR_FILE, resolve_checkpoint
from paddlemix_vl2.layouts.fusion_plan import Layout
from paddlemix_vl2.processing.batching import Batch, Sample, pad_samples
from paddlemix_vl2.processing.conversation import Conversation
from paddlemix_vl2.processing.templates import Piece
from paddlemix_vl2.processing.tokenizer import IMAGE_TOKEN, PAD_TOKEN, DeepseekTokenizer

# Keys that other tools write into the file and that say nothing about processing.
_FOREIGN_KEYS = ("processor_class", "auto_map", "transformers_version")

Picture = Image.Image | str | os.PathLike
Grid = tuple[int, int]
Processor = TypeVar("Processor", bound="VisionLanguageProcessor")


class TokenizedText(NamedTuple):
    """Text and its pictures as the model reads them.

    Attributes:
        input_ids: ids; each ``<image>`` has become as many image tokens as its picture has.
        images: one float32 [views, 3, S, S] per picture.
        images_seq_mask: True at image tokens.
        images_spatial_crop: (tiles in width, tiles in height) per picture.
        num_image_tokens: length of each picture's token span.
    """

    input_ids: list[int]
    images: list[np.ndarray]
    images_seq_mask: list[bool]
    images_spatial_crop: list[Grid]
    num_image_tokens: list[int]


class VisionLanguageProcessor:
    """Turns conversations with pictures into model inputs; the module's docstring shows the flow.

    A subclass's constructor takes the tokenizer and then the keys of its ``processor_config.json``; arguments
    behind a ``*`` are no keys. It sets the attributes below.

    Attributes:
        tokenizer: text to ids.
        layout: number and order of the image tokens.
        image_token, ignore_id, mask_prompt: as in ``processor_config.json``.
        template: a conversation to pieces of text.
        max_tiled_pictures: with more pictures in a conversation, none of them is cut into tiles.
    """

    tokenizer: DeepseekTokenizer
    layout: Layout
    image_token: str
    ignore_id: int
    mask_prompt: bool
    template: Callable[[Conversation], list[Piece]]
    max_tiled_pictures: int

    def __init__(self, tokenizer: DeepseekTokenizer, **settings):
        raise NotImplementedError

    def view_picture(self, source: Picture, name: str | None, cropping: bool) -> tuple[np.ndarray, Grid]:
        """A picture's views, float32 [views, 3, S, S], and its grid.

        Args:
            name: how errors call a picture that is no file.
            cropping: whether it may be cut into tiles.
        """
        raise NotImplementedError

    def blank_views(self) -> np.ndarray:
        """The views of a sample without pictures."""
        raise NotImplementedError

    # ---- files ----

    @classmethod
    def from_pretrained(cls: type[Processor], folder: str | os.PathLike, **settings) -> Processor:
        """Read ``processor_config.json``, ``tokenizer.json`` and, if present, ``tokenizer_config.json``.

        Args:
            folder: a local folder, or a hub name such as ``deepseek-ai/deepseek-vl2-tiny``.
            **settings: replace keys of the file, e.g. ``mask_prompt=True``.

        Raises:
            FileNotFoundError: no such folder, or a file is missing in it.
            ValueError: a file cannot be read, a key is unknown, or a value is not supported.
        """
        folder = resolve_checkpoint(folder)
        file = folder / PROCESSOR_FILE
        values = {key: value for key, value in read_object(file).items() if key not in _FOREIGN_KEYS}
        cls._check_keys(values, file)
        cls._check_keys(settings, "from_pretrained")
        values = {**values, **settings}
        pad_token, image_token = values.get("pad_token", PAD_TOKEN), values.get("image_token", IMAGE_TOKEN)
        tokenizer = DeepseekTokenizer.from_pretrained(folder, pad_token, image_token)
        for key in cls.setting_names(required=True):
            if key not in values:
                raise ValueError(f"{file}: the key {key} is missing")
        try:
            return cls(tokenizer, **values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the processor's and the tokenizer's files, in the published layout, into ``folder``."""
        self.tokenizer.save_pretrained(folder)
        values = {"processor_class": type(self).__name__, **self.settings}
        write_object(Path(folder) / PROCESSOR_FILE, values)

    @classmethod
    def setting_names(cls, required: bool = False) -> list[str]:
        """The keys of ``processor_config.json`` in the order of the constructor; only those without a default
        where ``required``."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]
        return [
            parameter.name
            for parameter in parameters
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and (not required or parameter.default is parameter.empty)
        ]

    @property
    def settings(self) -> dict:
        """The values of these keys."""
        return {key: getattr(self, key) for key in self.setting_names()}

    def with_settings(self: Processor, **settings) -> Processor:
        """A processor with other values of some keys, e.g. ``mask_prompt``."""
        self._check_keys(settings, "with_settings")
        return type(self)(self.tokenizer, **{**self.settings, **settings})

    @classmethod
    def _check_keys(cls, values: dict, place) -> None:
        for key in values:
            check_key(key, cls.setting_names(), place)

    # ---- one conversation ----

    def tokenize_with_images(
        self,
        conversation: str,
        images: Sequence[Picture] = (),
        bos: bool = True,
        eos: bool = True,
        cropping: bool = True,
    ) -> TokenizedText:
        """Tokenise text with an ``<image>`` for each picture.

        Args:
            conversation: the text, in the template already.
            images: PIL images or paths, one per ``<image>``, in order.
            bos, eos: whether to begin and to end with the begin- and end-of-sentence token.
            cropping: cut pictures into the best grid of tiles; otherwise each is seen as a whole only.

        Raises:
            ValueError: the number of pictures is not that of ``<image>``, or a picture cannot be read.
        """
        first, *rest = conversation.split(self.image_token)
        if len(rest) != len(images):
            raise ValueError(
                f"the text has {len(rest)} {self.image_token} but {len(images)} picture(s) are given"
            )
        image_id = self.tokenizer.image_token_id
        ids = [self.tokenizer.bos_token_id] if bos else []
        ids += self.tokenizer.encode(first)
        views, grids, spans = [], [], []
        for index, (source, following) in enumerate(zip(images, rest, strict=True)):
            name = None
            if isinstance(source, Image.Image):
                name = getattr(source, "filename", "") or f"picture {index} (a PIL image)"
            picture_views, grid = self.view_picture(source, name, cropping)
            views.append(picture_views)
            grids.append(grid)
            spans.append(self.layout.num_tokens(grid))
            ids += [image_id] * spans[-1] + self.tokenizer.encode(following)
        ids += [self.tokenizer.eos_token_id] if eos else []
        # The text was split at every <image>, so no other position has its id.
        return TokenizedText(ids, views, [id_ == image_id for id_ in ids], grids, spans)

    def process_one(
        self,
        conversations: Conversation | Sequence[dict] | None = None,
        images: Sequence[Picture] | None = None,
        *,
        prompt: str | None = None,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> Sample:
        """One conversation, or one text that is in the template already, as a sample.

        With more than two pictures none of them is tiled, as in the published code.

        Args:
            conversations: the messages of one conversation, which :meth:`Conversation.parse` checks; or a
                conversation that has been checked, and brings its pictures and its mode.
            images: the conversation's pictures in order (PIL images or paths). None: the messages name them.
            prompt: text taken as it is, instead of ``conversations``. In training all of it but pictures has
                labels, also with ``mask_prompt``: prompt and answer are not marked.
            inference_mode: leave the end open for the model to continue. False: a training sample.
            system_prompt: the same as a first message of the role "system".

        Raises:
            ValueError: the conversation, the number of pictures or a picture is not acceptable.
        """
        if (conversations is None) == (prompt is None):
            raise ValueError("give either conversations or prompt")
        if images is not None and not isinstance(images, list | tuple):
            raise ValueError(f"images is a list of pictures, not {type(images).__name__}")
        if isinstance(conversations, Conversation):
            return self._make_sample(self.template(conversations), conversations.inference_mode)
        if conversations is not None:
            conversation = Conversation.parse(
                conversations, images, inference_mode, system_prompt, self.image_token
            )
            return self._make_sample(self.template(conversation), inference_mode)
        if not isinstance(prompt, str):
            raise ValueError(f"prompt is text, not {type(prompt).__name__}")
        if system_prompt:
            raise ValueError("system_prompt belongs to conversations; write it into the prompt")
        piece = Piece(prompt, tuple(images or ()), closed=not inference_mode, is_answer=True)
        return self._make_sample([piece], inference_mode)

    def _make_sample(self, pieces: list[Piece], inference_mode: bool) -> Sample:
        cropping = sum(len(piece.images) for piece in pieces) <= self.max_tiled_pictures
        # The begin token keeps its label under mask_prompt, as recorded; nothing predicts the first position.
        ids = labels = np.array([self.tokenizer.bos_token_id], dtype=np.int64)
        parts = []
        for piece in pieces:
            part = self.tokenize_with_images(piece.text, piece.images, False, piece.closed, cropping)
            piece_ids = np.array(part.input_ids, dtype=np.int64)
            learned = piece.is_answer or not self.mask_prompt
            ids = np.concatenate([ids, piece_ids])
            labels = np.concatenate(
                [labels, piece_ids if learned else np.full_like(piece_ids, self.ignore_id)]
            )
            parts.append(part)
        views = [view for part in parts for view in part.images]
        grids = [grid for part in parts for grid in part.images_spatial_crop]
        is_image = ids == self.tokenizer.image_token_id
        return Sample(
            input_ids=ids,
            labels=np.where(is_image, self.ignore_id, labels),
            images=np.concatenate(views) if views else self.blank_views(),
            images_seq_mask=is_image,
            images_spatial_crop=np.array(grids or [(0, 0)], dtype=np.int64),
            num_image_tokens=[span for part in parts for span in part.num_image_tokens],
            inference_mode=inference_mode,
        )

    # ---- batches ----

    def batchify(self, samples: Sequence[Sample]) -> Batch:
        """One left-padded batch of Paddle tensors; :class:`Batch` lists names and shapes.

        Raises:
            ValueError: no samples, or training samples among inference samples.
        """
        pad_id = self.tokenizer.pad_token_id
        return pad_samples(samples, pad_id, self.ignore_id, self.layout).to_tensors()

    def __call__(
        self,
        conversations: Sequence | Conversation | None = None,
        images: Sequence | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> Batch:
        """:meth:`process_one` and :meth:`batchify` for one conversation or prompt, or for a list of them.

        Args:
            conversations, prompt: one, or a list of them.
            images: for one, its pictures; for a list, one list of pictures (or None) for each.
            inference_mode, system_prompt: for all of them.

        Raises:
            ValueError: as :meth:`process_one`; among several the message says which.
        """
        several = _several(conversations, prompt)
        if several is None:
            sample = self.process_one(
                conversations,
                images,
                prompt=cast("str | None", prompt),  # no list, or there were several
                inference_mode=inference_mode,
                system_prompt=system_prompt,
            )
            return self.batchify([sample])
        if conversations is not None and prompt is not None:
            raise ValueError("give either conversations or prompt")
        if images is not None and len(images) != len(several):
            raise ValueError(
                f"{len(several)} conversations but images= holds {len(images)} lists of pictures"
            )
        samples = []
        for index, one in enumerate(several):
            given = {"prompt": one} if isinstance(one, str) else {"conversations": one}
            pictures = None if images is None else images[index]
            try:
                sample = self.process_one(
                    images=pictures, inference_mode=inference_mode, system_prompt=system_prompt, **given
                )
            except ValueError as error:
                raise ValueError(f"conversation {index}: {error}") from error
            samples.append(sample)
        return self.batchify(samples)


def _several(conversations, prompt) -> Sequence | None:
    """The list, where it is one of conversations or prompts and not a single one."""
    if isinstance(prompt, list | tuple):
        return prompt
    is_list = isinstance(conversations, list | tuple) and bool(conversations)
    return conversations if is_list and isinstance(conversations[0], list | tuple | Conversation) else None
