"""``DeepseekVLV2Processor``: conversations and pictures in, batches for the model out.

::

    messages --build_pieces--> pieces of text with their pictures
    piece    --tokenize_with_images--> ids, views, image mask, tile grids
    pieces   --process_one--> Sample (numpy)
    samples  --batchify--> batch (Paddle tensors)

Mirrors ``DeepseekVLV2Processor`` of the published code; the settings are the keys of
``processor_config.json``.
"""

import copy
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from paddlemix_vl2.hub import resolve_checkpoint
from paddlemix_vl2.image_layout import num_image_tokens, tokens_per_side
from paddlemix_vl2.keys import check_key
from paddlemix_vl2.processing.batching import Sample, pad_samples, to_paddle
from paddlemix_vl2.processing.conversation import Piece, build_pieces
from paddlemix_vl2.processing.json_files import read_object, write_object
from paddlemix_vl2.processing.pictures import open_picture, picture_size
from paddlemix_vl2.processing.tiling import PictureTransform, check_resolutions, select_best_resolution
from paddlemix_vl2.processing.tokenizer import IMAGE_TOKEN, PAD_TOKEN, DeepseekTokenizer

PROCESSOR_NAME = "processor_config.json"
MAX_TILED_PICTURES = 2
# Keys that other tools write into the file and that say nothing about processing.
_FOREIGN_KEYS = ("processor_class", "auto_map", "transformers_version")
_TYPES = {
    int: ("patch_size", "downsample_ratio", "ignore_id"),
    bool: ("normalize", "add_special_token", "mask_prompt"),
}

Picture = Image.Image | str | os.PathLike


class TokenizedText(NamedTuple):
    """Text and its pictures as the model reads them.

    Attributes:
        input_ids: ids; each ``<image>`` has become as many image tokens as its picture has.
        images: one float32 [1 + tiles, 3, S, S] per picture: global view, then tiles.
        images_seq_mask: True at image tokens.
        images_spatial_crop: (tiles in width, tiles in height) per picture.
        num_image_tokens: length of each picture's token span.
    """

    input_ids: list[int]
    images: list[np.ndarray]
    images_seq_mask: list[bool]
    images_spatial_crop: list[tuple[int, int]]
    num_image_tokens: list[int]


class DeepseekVLV2Processor:
    """Turns conversations with pictures into model inputs; the module's docstring draws the flow.

    Every argument after the tokenizer is a key of ``processor_config.json``.

    Args:
        tokenizer: text to ids.
        candidate_resolutions: pairs of width and height; the first is one tile, the others are grids of it.
        patch_size, downsample_ratio: of the vision tower and the projector; with the tile size they give the
            number of image tokens.
        image_mean, image_std: per channel, of values between 0 and 1; used where ``normalize``. The mean is
            also the colour of the padding.
        image_token, pad_token: as in the tokenizer.
        add_special_token: false in every published file; true is refused.
        sft_format: name of the conversation template; "deepseek" is the one of every published file.
        mask_prompt: whether labels cover answers only. Without it they cover all text.
        ignore_id: label of positions that are not learned.

    Attributes:
        tile_size: width and height of a view in pixels: the first candidate resolution.
        tokens_per_side: image tokens along one side of a view.

    Raises:
        ValueError: a setting is out of range or not supported.
    """

    def __init__(
        self,
        tokenizer: DeepseekTokenizer,
        candidate_resolutions: Sequence[Sequence[int]],
        patch_size: int = 14,
        downsample_ratio: int = 2,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        normalize: bool = True,
        image_token: str = IMAGE_TOKEN,
        pad_token: str = PAD_TOKEN,
        add_special_token: bool = False,
        sft_format: str = "deepseek",
        mask_prompt: bool = False,
        ignore_id: int = -100,
    ):
        self.tokenizer = tokenizer
        self.candidate_resolutions = check_resolutions(candidate_resolutions)
        self.patch_size = patch_size
        self.downsample_ratio = downsample_ratio
        self.image_mean = _check_channels("image_mean", image_mean)
        self.image_std = _check_channels("image_std", image_std)
        self.normalize = normalize
        self.image_token = image_token
        self.pad_token = pad_token
        self.add_special_token = add_special_token
        self.sft_format = sft_format
        self.mask_prompt = mask_prompt
        self.ignore_id = ignore_id
        self.tile_size = self.candidate_resolutions[0][0]
        self._check()
        self.tokens_per_side = tokens_per_side(self.tile_size, patch_size, downsample_ratio)
        self._transform = PictureTransform(self.tile_size, self.image_mean, self.image_std, normalize)
        self._reads_pixels = True

    def _check(self) -> None:
        for kind, names in _TYPES.items():
            for name in names:
                if type(getattr(self, name)) is not kind:
                    raise ValueError(f"{name} is {getattr(self, name)!r}; it must be of type {kind.__name__}")
        if min(self.patch_size, self.downsample_ratio) < 1 or self.patch_size > self.tile_size:
            raise ValueError(
                f"patch_size {self.patch_size} and downsample_ratio {self.downsample_ratio} must be at "
                f"least 1, and a patch not larger than a tile ({self.tile_size})"
            )
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {list(self.image_std)}; it must be above 0")
        if self.sft_format != "deepseek":
            raise ValueError(f"sft_format is {self.sft_format!r}; only 'deepseek' is supported")
        if self.add_special_token:
            raise ValueError("add_special_token true is not used by any published model and not supported")
        for name in ("image_token", "pad_token"):
            ours, theirs = getattr(self, name), getattr(self.tokenizer, name)
            if ours != theirs:
                raise ValueError(f"{name} is {ours!r} in the processor and {theirs!r} in its tokenizer")

    # ---- files ----

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **settings) -> "DeepseekVLV2Processor":
        """Read ``processor_config.json``, ``tokenizer.json`` and, if present, ``tokenizer_config.json``.

        Args:
            folder: a local folder, or a hub name such as ``deepseek-ai/deepseek-vl2-tiny``.
            **settings: replace keys of the file, e.g. ``mask_prompt=True``.

        Raises:
            FileNotFoundError: no such folder, or a file is missing in it.
            ValueError: a file cannot be read, a key is unknown, or a value is not supported.
        """
        folder = resolve_checkpoint(folder)
        file = folder / PROCESSOR_NAME
        values = {key: value for key, value in read_object(file).items() if key not in _FOREIGN_KEYS}
        _check_keys(values, file)
        _check_keys(settings, "from_pretrained")
        values = {**values, **settings}
        tokenizer = DeepseekTokenizer.from_pretrained(
            folder, values.get("pad_token", PAD_TOKEN), values.get("image_token", IMAGE_TOKEN)
        )
        if "candidate_resolutions" not in values:
            raise ValueError(f"{file}: the key candidate_resolutions is missing")
        try:
            return cls(tokenizer, **values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the processor's and the tokenizer's files, in the published layout, into ``folder``."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        values = {key: getattr(self, key) for key in _setting_names()}
        write_object(folder / PROCESSOR_NAME, {"processor_class": type(self).__name__, **values})

    def without_pixels(self) -> "DeepseekVLV2Processor":
        """A processor that makes the same samples with empty views, float32 [N, 3, 0, 0]: of a picture's file
        it reads the size, which says how many tokens and views there are."""
        measuring = copy.copy(self)
        measuring._reads_pixels = False
        return measuring

    # ---- one conversation ----

    def tokenize_with_images(
        self,
        text: str,
        images: Sequence[Picture] = (),
        bos: bool = True,
        eos: bool = True,
        cropping: bool = True,
    ) -> TokenizedText:
        """Tokenise text in which each ``<image>`` stands for a picture.

        Args:
            images: PIL images or paths, one per ``<image>``, in order.
            bos, eos: whether to begin and to end with the begin- and end-of-sentence token.
            cropping: cut pictures into the best grid of tiles; otherwise each is one tile.

        Raises:
            ValueError: the number of pictures is not that of ``<image>``, or a picture cannot be read.
        """
        first, *rest = text.split(self.image_token)
        if len(rest) != len(images):
            raise ValueError(
                f"the text has {len(rest)} {self.image_token} but {len(images)} picture(s) are given"
            )
        image_id = self.tokenizer.image_token_id
        ids = [self.tokenizer.bos_token_id] if bos else []
        ids += self.tokenizer.encode(first)
        views, grids, spans = [], [], []
        for index, (source, following) in enumerate(zip(images, rest, strict=True)):
            picture_views, grid = self._view_picture(source, index, cropping)
            views.append(picture_views)
            grids.append(grid)
            spans.append(num_image_tokens(*grid, side=self.tokens_per_side))
            ids += [image_id] * spans[-1] + self.tokenizer.encode(following)
        ids += [self.tokenizer.eos_token_id] if eos else []
        # The text was split at every <image>, so no other position has its id.
        return TokenizedText(ids, views, [id_ == image_id for id_ in ids], grids, spans)

    def _view_picture(
        self, source: Picture, index: int, cropping: bool
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture's views and its grid (tiles in width, tiles in height)."""
        name = None
        if isinstance(source, Image.Image):
            name = getattr(source, "filename", "") or f"picture {index} (a PIL image)"
        picture = open_picture(source, name) if self._reads_pixels else None
        size = picture.size if picture else picture_size(source, name)
        resolution = (self.tile_size, self.tile_size)
        if cropping:
            resolution = select_best_resolution(size, self.candidate_resolutions)
        grid = (resolution[0] // self.tile_size, resolution[1] // self.tile_size)
        if picture is None:
            return np.empty((1 + grid[0] * grid[1], 3, 0, 0), dtype=np.float32), grid
        return self._transform.views(picture, resolution), grid

    def process_one(
        self,
        conversations: Sequence[dict] | None = None,
        images: Sequence[Picture] | None = None,
        *,
        prompt: str | None = None,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> Sample:
        """One conversation, or one text that is in the template already, as a sample.

        With more than two pictures none of them is tiled, as in the published code.

        Args:
            conversations: the messages of one conversation; :func:`build_pieces` has the rules.
            images: the conversation's pictures in order (PIL images or paths). None: the messages name them.
            prompt: text taken as it is, instead of ``conversations``. All of it but pictures is learned in
                training, also with ``mask_prompt``, since nothing tells prompt and answer apart.
            inference_mode: leave the end open for the model to continue. False: a training sample.
            system_prompt: the same as a first message of the role "system".

        Raises:
            ValueError: the conversation, the number of pictures or a picture is not acceptable.
        """
        if (conversations is None) == (prompt is None):
            raise ValueError("give either conversations or prompt")
        if images is not None and not isinstance(images, list | tuple):
            raise ValueError(f"images is a list of pictures, not {type(images).__name__}")
        if prompt is not None:
            if not isinstance(prompt, str):
                raise ValueError(f"prompt is text, not {type(prompt).__name__}")
            if system_prompt:
                raise ValueError("system_prompt belongs to conversations; write it into the prompt")
            pieces = [Piece(prompt, list(images or []), closed=not inference_mode, is_answer=True)]
        else:
            pictures = None if images is None else list(images)
            pieces = build_pieces(conversations, pictures, self.image_token, inference_mode, system_prompt)
        return self._make_sample(pieces, inference_mode)

    def _make_sample(self, pieces: list[Piece], inference_mode: bool) -> Sample:
        cropping = sum(len(piece.pictures) for piece in pieces) <= MAX_TILED_PICTURES
        # The begin token keeps its label under mask_prompt, as recorded; nothing predicts the first position.
        ids = labels = np.array([self.tokenizer.bos_token_id], dtype=np.int64)
        parts = []
        for piece in pieces:
            part = self.tokenize_with_images(piece.text, piece.pictures, False, piece.closed, cropping)
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
            images=np.concatenate(views) if views else self._transform.blank_view(),
            images_seq_mask=is_image,
            images_spatial_crop=np.array(grids or [(0, 0)], dtype=np.int64),
            num_image_tokens=[span for part in parts for span in part.num_image_tokens],
            text="".join(piece.text for piece in pieces),
            inference_mode=inference_mode,
        )

    # ---- batches ----

    def batchify(self, samples: Sequence[Sample]) -> dict:
        """One left-padded batch of Paddle tensors; :func:`pad_samples` lists names and shapes.

        Raises:
            ValueError: no samples, or training samples among inference samples.
        """
        return to_paddle(pad_samples(samples, self.tokenizer.pad_token_id, self.ignore_id))

    def __call__(
        self,
        conversations: Sequence[dict] | Sequence[Sequence[dict]] | None = None,
        images: Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> dict:
        """:meth:`process_one` and :meth:`batchify` for one conversation or prompt, or for a list of them.

        Args:
            conversations, prompt: one, or a list of them.
            images: for one, its pictures; for a list, one list of pictures (or None) for each.
            inference_mode, system_prompt: for all of them.

        Raises:
            ValueError: as :meth:`process_one`; among several the message says which.
        """
        several = prompt if isinstance(prompt, list | tuple) else None
        if (
            isinstance(conversations, list | tuple)
            and conversations
            and isinstance(conversations[0], list | tuple)
        ):
            several = conversations
        common = {"inference_mode": inference_mode, "system_prompt": system_prompt}
        if several is None:
            return self.batchify([self.process_one(conversations, images, prompt=prompt, **common)])
        if conversations is not None and prompt is not None:
            raise ValueError("give either conversations or prompt")
        if images is not None and len(images) != len(several):
            raise ValueError(
                f"{len(several)} conversations but images= holds {len(images)} lists of pictures"
            )
        key = "prompt" if several is prompt else "conversations"
        samples = []
        for index, one in enumerate(several):
            pictures = None if images is None else images[index]
            try:
                samples.append(self.process_one(images=pictures, **{key: one}, **common))
            except ValueError as error:
                raise ValueError(f"conversation {index}: {error}") from error
        return self.batchify(samples)


def _setting_names() -> list[str]:
    """The keys of ``processor_config.json`` in the order of the constructor."""
    return [name for name in inspect.signature(DeepseekVLV2Processor.__init__).parameters][2:]


def _check_keys(values: dict, place) -> None:
    for key in values:
        check_key(key, _setting_names(), place)


def _check_channels(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{name} is {values!r}; it must be three numbers (red, green, blue)")
    return tuple(float(value) for value in values)
