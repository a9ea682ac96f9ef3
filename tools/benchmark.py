"""Time and memory of each step of an answer, beside what the machine could do at best.

    python tools/make_random_checkpoint.py tiny /tmp/tiny
    python tools/benchmark.py /tmp/tiny --tiles 5 --prompt-tokens 1263

prints load time, vision time per tile, prefill and decode speed and peak memory, each with its floor: the
operations (or bytes) that it needs by arithmetic, at the speed of a large matrix product (or a large read)
measured in the same run, before and after, the better of the two. Timings are medians of ``--repeats``.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, costs
from paddlemix_vl2.device import is_gpu, physical_cores, set_device

MATMUL_SIZE = 4096
READ_BYTES = 800_000_000


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        set_device(arguments.device)
        report = run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_path", type=Path, help="checkpoint folder; a random one will do")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--tiles", type=int, default=5, help="views that go through the vision tower")
    parser.add_argument("--prompt-tokens", type=int, default=1263)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(argv)


@paddle.no_grad()
def run(arguments: argparse.Namespace) -> dict:
    """The report: seconds, floors in seconds, and bytes."""
    before = matmul_flops("float32"), read_bandwidth()
    started = time.perf_counter()
    model = DeepseekVLV2ForCausalLM.from_pretrained(arguments.model_path, arguments.dtype)
    load = time.perf_counter() - started
    loaded_bytes = peak_memory()
    steps = {
        "vision": time_vision(model, arguments),
        "prefill": time_prefill(model, arguments),
        "decode": time_decode(model, arguments),
    }
    flops = max(before[0], matmul_flops(model.weight_dtype))
    bandwidth = max(before[1], read_bandwidth())
    vision, language = model.config, model.config.language_config
    length = arguments.prompt_tokens + arguments.new_tokens
    itemsize = 4 if model.weight_dtype == "float32" else 2
    return {
        "model": str(arguments.model_path),
        "device": paddle.get_device(),
        "threads": physical_cores(),
        "dtype": model.weight_dtype,
        "tiles": arguments.tiles,
        "prompt_tokens": arguments.prompt_tokens,
        "flops_per_second": flops,
        "bytes_per_second": bandwidth,
        "load_seconds": load,
        "load_peak_bytes": loaded_bytes,
        "seconds": steps,
        "floor_seconds": {
            "vision": costs.vision_flops(vision, arguments.tiles) / flops,
            "prefill": costs.prefill_flops(language, arguments.prompt_tokens) / flops,
            "decode": costs.decode_bytes(language, length, itemsize) / bandwidth,
        },
        "peak_bytes": peak_memory(),
    }


def time_vision(model, arguments) -> float:
    side = model.config.vision_config.image_size
    pixels = paddle.rand([arguments.tiles, 3, side, side]) * 2 - 1
    return median_seconds(lambda: model.encode_tiles(pixels), arguments.repeats)


def time_prefill(model, arguments) -> float:
    batch, capacity = prompt(model, arguments)
    return median_seconds(lambda: model.prefill(batch, capacity)[0], arguments.repeats)


def time_decode(model, arguments) -> float:
    """Median seconds of one step behind the prompt."""
    batch, capacity = prompt(model, arguments)
    _, cache = model.prefill(batch, capacity)
    token = paddle.to_tensor([[5]])
    model.decode_step(token, cache).numpy()  # the first step lays out the absorbed weights
    seconds = []
    for _ in range(arguments.new_tokens - 1):
        started = time.perf_counter()
        model.decode_step(token, cache).numpy()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def prompt(model, arguments) -> tuple[dict, int]:
    rng = np.random.default_rng(0)
    vocabulary = model.config.language_config.vocab_size
    ids = paddle.to_tensor(rng.integers(0, vocabulary, [1, arguments.prompt_tokens]))
    batch = {"input_ids": ids, "attention_mask": paddle.ones_like(ids)}
    return batch, arguments.prompt_tokens + arguments.new_tokens


def median_seconds(compute, repeats: int) -> float:
    """Median over ``repeats`` runs after one that does not count; reading the result waits for the device."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        compute().numpy()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def matmul_flops(dtype: str) -> float:
    """Operations per second of a large square matrix product."""
    x = paddle.rand([MATMUL_SIZE, MATMUL_SIZE]).astype(dtype)
    return 2 * MATMUL_SIZE**3 / median_seconds(lambda: paddle.matmul(x, x)[:1].astype("float32"), 3)


def read_bandwidth() -> float:
    """Bytes per second of reading a block far larger than the caches, with all cores or the GPU."""
    if is_gpu():
        block = paddle.ones([READ_BYTES // 4], "float32")
        return READ_BYTES / median_seconds(block.max, 5)
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), 4 * physical_cores())
    seconds = []
    with ThreadPoolExecutor(physical_cores()) as pool:
        for _ in range(6):
            started = time.perf_counter()
            list(pool.map(np.max, parts))  # numpy's fastest read, and it leaves Python's lock alone
            seconds.append(time.perf_counter() - started)
    return READ_BYTES / statistics.median(seconds[1:])


def peak_memory() -> int:
    """Largest resident size of the process so far, or the most that Paddle held on the GPU."""
    if is_gpu():
        return paddle.device.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_text(report: dict) -> str:
    seconds, floors = report["seconds"], report["floor_seconds"]
    tiles, tokens = report["tiles"], report["prompt_tokens"]
    rows = [
        ("vision", f"{seconds['vision'] / tiles:.2f} s per tile ({tiles} tiles)"),
        ("prefill", f"{tokens / seconds['prefill']:.0f} tokens/s ({tokens} tokens)"),
        ("decode", f"{1 / seconds['decode']:.1f} tokens/s"),
    ]
    lines = [
        f"{report['model']} on {report['device']}, {report['dtype']}, {report['threads']} threads",
        f"matrix product {report['flops_per_second'] / 1e9:.0f} GFLOPS, "
        f"read {report['bytes_per_second'] / 1e9:.1f} GB/s",
        f"load     {report['load_seconds']:8.1f} s, peak {report['load_peak_bytes'] / 1e9:.2f} GB",
    ]
    lines += [
        f"{name:8} {seconds[name]:8.3f} s, floor {floors[name]:.3f} s "
        f"({seconds[name] / floors[name]:.2f} x)   {note}"
        for name, note in rows
    ]
    return "\n".join([*lines, f"peak     {report['peak_bytes'] / 1e9:8.2f} GB"])


if __name__ == "__main__":
    sys.exit(main())
