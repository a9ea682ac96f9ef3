"""Draw how a checkpoint routes a text and a picture through its experts.

    python tools/plot_router.py --model_path output/demo --image_file examples/images/shapes.png \\
        --text "Which shapes are in this picture?" --output router.png

reads the text (a user's question, in the conversation template) and the picture in one forward pass and draws
the load of every expert in every mixture layer with MaxVio and entropy, the text's tokens in the colour of
their first expert, and the picture's image tokens likewise. ``docs/router.md`` says how to read the figure.
"""

import argparse
import sys
import warnings
from collections.abc import Iterable

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, device
    from paddlemix_vl2.configuration import DeepseekV2Config, DeepseekVLV2Config
    from paddlemix_vl2.generation.decoding import check_lengths
    from paddlemix_vl2.generation.drawing import check_output
    from paddlemix_vl2.hub import resolve_checkpoint
    from paddlemix_vl2.processing.pictures import open_picture
    from paddlemix_vl2.training.balance import RouterLoads

    # isort: split
    import paddle

# Beside this file.
from command_line import OneLineParser, exit_code, say
from plotting import save_figure
from router_figure import WIDE_FONTS, PictureViews, Reading, cover, draw, escape, installed_fonts, readable

EXAMPLE_TEXT = (
    "A mixture of experts sends every token to a few small networks. The red circle is left of 12 blue "
    "squares, and 3 + 4 = 7; def area(r): return 3.14 * r ** 2"
)


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(make_parser().parse_args(argv)))


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint folder or hub name")
    add("--image_file", metavar="FILE", help="a picture; it stands in front of the text")
    add("--text", default=EXAMPLE_TEXT, help="what the user says (default: an example)")
    add("--layer", type=int, metavar="N", help="whose tokens to show, from 0 (default: the middle one)")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of the weights")
    add("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    add("--output", required=True, metavar="FILE", help="the figure, as .png, .jpg or .webp")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Read, draw, save.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    check_output(arguments.output)
    device.set_device(arguments.device)
    picture = None if arguments.image_file is None else open_picture(arguments.image_file)
    folder = resolve_checkpoint(arguments.model_path)
    language = DeepseekVLV2Config.from_json(folder).language_config
    layers, layer = choose_layer(language, arguments.layer)
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    text = arguments.text if picture is None else f"{processor.image_token}\n{arguments.text}"
    conversation = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    sample = processor.process_one(conversation, [] if picture is None else [picture])
    check_lengths(len(sample.input_ids), 1, None, language.max_sequence_length)
    model = DeepseekVLV2ForCausalLM.from_pretrained(folder, dtype=arguments.dtype, engine="eager")
    reading = read(model, processor.batchify([sample]), layers, layer)
    labels, fonts = label_tokens(processor.tokenizer, reading.token_ids[~reading.is_image])
    views = None if picture is None else picture_views(processor, sample)
    save_figure(draw(reading, labels, fonts, views), arguments.output)


def choose_layer(language: DeepseekV2Config, wanted: int | None) -> tuple[list[int], int]:
    """The mixture layers, and the one to show: ``wanted``, or the middle one."""
    layers = [index for index in range(language.num_hidden_layers) if language.is_moe_layer(index)]
    if not layers:
        raise ValueError("this model has no layers with experts")
    if wanted is None:
        return layers, layers[len(layers) // 2]
    if wanted not in layers:
        known = ", ".join(map(str, layers))
        raise ValueError(f"--layer {wanted}: there are no experts; the layers with experts are {known}")
    return layers, wanted


# ---- what the router did ----


@paddle.no_grad()
def read(model: DeepseekVLV2ForCausalLM, batch: dict, layers: list[int], layer: int) -> Reading:
    """One forward pass over a batch of one sample."""
    device.check_compute_dtype(model.weight_dtype)
    pictures = {key: batch[key] for key in ("images", "images_seq_mask", "images_spatial_crop")}
    embeddings = model.prepare_inputs_embeds(batch["input_ids"], **pictures)
    # Not the whole model: logits of all positions take a gigabyte with the published vocabulary.
    output = model.language.model(embeddings, paddle.arange(embeddings.shape[1]).unsqueeze(0))
    loads = RouterLoads()
    loads.add(output.routings, batch["attention_mask"])
    statistics = {name: np.array(values) for name, values in loads.statistics().items()}
    chosen = output.routings[layers.index(layer)]
    return Reading(
        layers=layers,
        layer=layer,
        **statistics,
        firsts=first_experts(chosen.experts.numpy(), chosen.weights.numpy()),
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


def label_tokens(tokenizer, ids: Iterable[int]) -> tuple[list[str], list[str]]:
    """What to write for each token, and the fonts that can. What no font has is escaped, and said once."""
    names = {tokenizer.bos_token_id: "<begin>", tokenizer.eos_token_id: "<end>"}
    texts = [names.get(int(id_)) or readable(tokenizer.decode([id_]), int(id_)) for id_ in ids]
    fonts, missing = cover({letter for text in texts for letter in text}, installed_fonts())
    labels = [escape(text, missing) for text in texts]
    if missing:
        changed = sum(label != text for label, text in zip(labels, texts, strict=True))
        say(
            f"note: {changed} of {len(texts)} tokens are written as codes like "
            f"{escape(min(missing), missing)}, as no installed font has their characters; "
            f"with {WIDE_FONTS[1]} or a similar one they are drawn"
        )
    return labels, fonts


if __name__ == "__main__":
    sys.exit(main())
