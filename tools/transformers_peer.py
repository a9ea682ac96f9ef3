"""The PyTorch parts that transformers has of these models, timed on request; for tools/benchmark.py.

    python tools/transformers_peer.py configs/model/small.json --dtype bfloat16 --threads 2

builds SigLIP's vision encoder and, where the configuration has multi-head latent attention, the DeepSeek-V2
language model of that geometry with random weights. It then reads steps from its input, one per line
(``vision``, ``prefill``, ``decode``), runs each and answers with a line of JSON, its seconds. Needs torch and
transformers, and nothing else: it may run in an environment of its own.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import transformers


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", type=Path, help="config.json of a published model")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--threads", type=int, required=True)
    add("--tiles", type=int, default=5)
    add("--prompt_tokens", type=int, default=1263)
    add("--new_tokens", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    steps = make_steps(json.loads(arguments.config.read_text(encoding="utf-8")), arguments)
    answer({"versions": [torch.__version__, transformers.__version__], "steps": list(steps)})
    for line in sys.stdin:
        with torch.inference_mode():
            answer({"seconds": steps[line.strip()]()})
    return 0


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


def make_steps(config: dict, arguments: argparse.Namespace) -> dict:
    """Name of a step -> what runs it and returns its seconds."""
    dtype = getattr(torch, arguments.dtype)
    tower = make_tower(config["vision_config"], dtype)
    side = config["vision_config"]["image_size"]
    tiles = torch.rand(arguments.tiles, 3, side, side, dtype=dtype) * 2 - 1
    steps = {"vision": lambda: seconds(lambda: tower(pixel_values=tiles))}
    if config["language_config"].get("use_mla", True):
        model = make_language_model(config["language_config"], dtype)
        ids = torch.randint(0, config["language_config"]["vocab_size"], (1, arguments.prompt_tokens))
        steps["prefill"] = lambda: seconds(lambda: read_prompt(model, ids))
        steps["decode"] = lambda: time_decode(model, ids, arguments.new_tokens)
    return steps


def make_tower(vision: dict, dtype) -> torch.nn.Module:
    """SigLIP without its pooling head."""
    config = transformers.SiglipVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=int(vision["width"] * vision["mlp_ratio"]),
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["heads"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_use_head=False,
    )
    return transformers.SiglipVisionModel(config).to(dtype).eval()


def make_language_model(language: dict, dtype) -> torch.nn.Module:
    """DeepSeek-V2; its configuration has the published keys."""
    known = set(transformers.DeepseekV2Config().to_dict()) - {"model_type", "torch_dtype", "dtype"}
    values = {name: value for name, value in language.items() if name in known}
    with torch.device("meta"):
        model = transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**values))
    model = model.to(dtype).to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
        # A buffer that was made without memory has no values: the rotary tables are made again.
        rotary = model.model.rotary_emb
        model.model.rotary_emb = type(rotary)(model.config)
    return model


def seconds(compute) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def read_prompt(model, ids):
    """Logits of the last position only, as an answer needs them."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1)


def time_decode(model, ids, new_tokens: int) -> float:
    """Median of steps behind the prompt."""
    cache = read_prompt(model, ids).past_key_values
    token, taken = ids[:, :1], []
    for _ in range(new_tokens):
        taken.append(seconds(lambda: model(input_ids=token, past_key_values=cache, use_cache=True)))
    return sorted(taken)[len(taken) // 2]


if __name__ == "__main__":
    sys.exit(main())
