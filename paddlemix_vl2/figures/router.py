"""What a model's routers do with a text and a picture, read in one forward pass for :mod:`.router_figure`."""

from collections.abc import Iterable

import numpy as np
import paddle

from paddlemix_vl2 import device
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.figures.router_figure import (
    WIDE_FONTS,
    PictureViews,
    Reading,
    cover,
    escape,
    installed_fonts,
    readable,
)
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.moe.statistics import RouterStatistics
from paddlemix_vl2.processing import DeepseekVLV2Processor


def choose_layer(language: DeepseekV2Config, wanted: int | None) -> tuple[list[int], int]:
    """The MoE layers, and the one to show: ``wanted``, or the middle one."""
    layers = [index for index in range(language.num_hidden_layers) if language.is_moe_layer(index)]
    if not layers:
        raise ValueError("this model has no layers with experts")
    if wanted is None:
        return layers, layers[len(layers) // 2]
    if wanted not in layers:
        known = ", ".join(map(str, layers))
        raise ValueError(f"layer {wanted}: there are no experts; the layers with experts are {known}")
    return layers, wanted


@paddle.no_grad()
def read_router(model: DeepseekVLV2ForCausalLM, batch: dict, layers: list[int], layer: int) -> Reading:
    """One forward pass over a batch of one sample."""
    device.check_compute_dtype(model.weight_dtype)
    embeddings = model.embed(batch["input_ids"], batch["images"], batch["plan"].fusion)
    # Not the whole model: logits of all positions take a gigabyte with the published vocabulary.
    output = model.language.model(embeddings, paddle.arange(embeddings.shape[1]).unsqueeze(0))
    loads = RouterStatistics()
    loads.add(output.routings, batch["attention_mask"])
    found = loads.values()
    statistics = {name: np.array(found[name]) for name in ("max_vio", "entropy", "expert_share")}
    chosen = output.routings[layers.index(layer)]
    return Reading(
        layers=layers,
        layer=layer,
        **statistics,
        firsts=first_experts(chosen.topk_idx.numpy(), chosen.topk_weight.numpy()),
        is_image=batch["images_seq_mask"][0].numpy(),
        token_ids=batch["input_ids"][0].numpy(),
    )


def first_experts(experts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The expert with the largest weight: int64 [M, K] and float32 [M, K] -> int64 [M]. With a correction
    bias this need not be the first column."""
    return np.take_along_axis(experts, weights.argmax(axis=1)[:, None], axis=1)[:, 0]


def picture_views(processor: DeepseekVLV2Processor, sample) -> PictureViews:
    """The sample's only picture, its values made pixels again."""
    values = sample.images.transpose(0, 2, 3, 1)  # [1 + tiles, S, S, 3]
    if processor.normalize:
        values = values * np.array(processor.image_std) + np.array(processor.image_mean)
    pixels = (values * 255).round().clip(0, 255).astype(np.uint8)
    grid = tuple(int(count) for count in sample.images_spatial_crop[0])
    cell = processor.patch_size * processor.downsample_ratio
    return PictureViews(pixels, grid, processor.tokens_per_side, cell)


def label_tokens(tokenizer, ids: Iterable[int]) -> tuple[list[str], list[str], str | None]:
    """What to write for each token, the fonts that can, and a note where no font has a character: it is
    written as a code then."""
    names = {tokenizer.bos_token_id: "<begin>", tokenizer.eos_token_id: "<end>"}
    texts = [names.get(int(id_)) or readable(tokenizer.decode([id_]), int(id_)) for id_ in ids]
    fonts, missing = cover({letter for text in texts for letter in text}, installed_fonts())
    labels = [escape(text, missing) for text in texts]
    if not missing:
        return labels, fonts, None
    changed = sum(label != text for label, text in zip(labels, texts, strict=True))
    note = (
        f"{changed} of {len(texts)} tokens are written as codes like {escape(min(missing), missing)}, as no "
        f"installed font has their characters; with {WIDE_FONTS[1]} or a similar one they are shown"
    )
    return labels, fonts, note
