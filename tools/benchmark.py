"""Time and memory of each step of an answer, beside what the machine could do at best.

    python tools/make_random_checkpoint.py tiny /tmp/tiny
    python tools/benchmark.py /tmp/tiny --tiles 5 --prompt_tokens 1263

prints load time, vision time per tile, prefill and decode speed and peak memory, each with its hardware
limit: the seconds that its operations (or bytes), counted by arithmetic, take at the speed of a large matrix
product (or a large read) on the same machine. Timings are medians of ``--repeats``. A matrix product is timed
before each of them, and ``x limit`` is the median of the ratios of such neighbours, which holds when the
machine's speed drifts.

``--against transformers`` times the parts that the transformers library has (its SigLIP; DeepSeek-V2 with
multi-head latent attention) on the same geometry and as many threads, interleaved with ours. It needs torch
and transformers, here or in the environment of ``--peer_python``.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Before Paddle itself: MKL's fast path on AMD has to be asked for first.
from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.cli.arguments import OneLineParser, add_backend_flag
from paddlemix_vl2.cli.program import exit_code
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.device import check_compute_dtype, is_gpu, resolve_dtype, set_device
from paddlemix_vl2.generation.decoding import check_lengths
from paddlemix_vl2.hub import resolve_checkpoint
from paddlemix_vl2.kernels import ops
from paddlemix_vl2.models.cpu_backend import choose_weights
from paddlemix_vl2.planning import flops as costs
from paddlemix_vl2.process_tuning import physical_cores

# isort: split
import paddle

MATMUL_SIZE = 3072
READ_BYTES = 800_000_000
PEER_PROGRAM = Path(__file__).with_name("transformers_peer.py")


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: report_on(parse(argv)))


def report_on(arguments: argparse.Namespace) -> None:
    set_device(arguments.device)
    report = run(arguments)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("model_path", type=Path, help="checkpoint folder; a random one will do")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 or int8")
    add_backend_flag(parser)
    parser.add_argument("--tiles", type=int, default=5, help="views that go through the vision tower")
    parser.add_argument("--prompt_tokens", type=int, default=1263)
    parser.add_argument("--new_tokens", type=int, default=16, help="at least 2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", choices=("transformers",), help="time its parts of the model in between")
    parser.add_argument("--peer_dtype", default="bfloat16", choices=("float32", "bfloat16"), help="its dtype")
    parser.add_argument("--peer_python", metavar="FILE", help="Python that has torch (default: this one)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args(argv)
    if min(arguments.tiles, arguments.prompt_tokens, arguments.new_tokens - 1, arguments.repeats) < 1:
        raise ValueError("--tiles, --prompt_tokens and --repeats are at least 1, --new_tokens at least 2")
    if arguments.peer_python and not arguments.against:
        raise ValueError("--peer_python runs the peer of --against, which is not given")
    arguments.peer_python = arguments.peer_python or sys.executable
    if not shutil.which(arguments.peer_python):
        raise FileNotFoundError(f"--peer_python {arguments.peer_python}: no such program")
    return arguments


@paddle.no_grad()
def run(arguments: argparse.Namespace) -> dict:
    """The report: seconds, bytes, and how many times the hardware limit each step takes."""
    language = DeepseekVLV2Config.from_json(resolve_checkpoint(arguments.model_path)).language_config
    weights = choose_weights(arguments.dtype, arguments.backend)
    if weights is None:
        check_compute_dtype(resolve_dtype(arguments.dtype))
    check_lengths(arguments.prompt_tokens, arguments.new_tokens, None, language.max_sequence_length)
    started = time.perf_counter()
    model = DeepseekVLV2ForCausalLM.from_pretrained(arguments.model_path, arguments.dtype, arguments.backend)
    load, load_peak = time.perf_counter() - started, peak_memory()
    with Peer(arguments) as peer:
        steps = {
            "vision": time_vision(model, arguments, weights, peer),
            "prefill": time_prefill(model, arguments, weights, peer),
            "decode": time_decode(model, arguments, weights, peer),
        }
    return {
        "model": str(arguments.model_path),
        "device": paddle.get_device(),
        "threads": physical_cores(),
        "dtype": f"{weights} weights on the kernels" if weights else model.weight_dtype,
        "tiles": arguments.tiles,
        "prompt_tokens": arguments.prompt_tokens,
        "load_seconds": load,
        "load_peak_bytes": load_peak,
        "peak_bytes": steps["decode"]["peak_bytes"],
        "against": peer.description,
        "steps": steps,
    }


class Peer:
    """tools/transformers_peer.py as a process that runs steps on request, or nothing without ``--against``.

    Raises:
        ValueError: it did not start, or stopped, with the last line of what it said.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.description, self._process, self._steps = None, None, ()
        if arguments.against:
            self._command = [arguments.peer_python, "-W", "ignore", str(PEER_PROGRAM)]
            self._command += [str(resolve_checkpoint(arguments.model_path) / "config.json")]
            self._command += ["--dtype", arguments.peer_dtype, "--threads", str(physical_cores())]
            for name in ("tiles", "prompt_tokens", "new_tokens"):
                self._command += [f"--{name}", str(getattr(arguments, name))]
            self.description = f"{arguments.against} in {arguments.peer_dtype}"

    def __enter__(self) -> "Peer":
        if self.description:
            pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
            self._process = subprocess.Popen(self._command, text=True, **pipes)
            self._steps = self._read()["steps"]
        return self

    def __exit__(self, *exception) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def seconds(self, step: str) -> float | None:
        """One run of a step; None where the other library has no such part, or nothing is compared with."""
        if step not in self._steps:
            return None
        self._process.stdin.write(f"{step}\n")
        self._process.stdin.flush()
        return self._read()["seconds"]

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            said = self._process.communicate()[1].strip().splitlines() or ["no message"]
            raise ValueError(f"{self.description}: {said[-1]}")
        return json.loads(line)


def time_vision(model, arguments, weights: str | None, peer: Peer | None = None) -> dict:
    side = model.config.vision_config.image_size
    pixels = paddle.rand([arguments.tiles, 3, side, side]) * 2 - 1
    flops = costs.vision_flops(model.config, arguments.tiles)
    product = square_product(weights or model.weight_dtype)
    step = lambda: model.encode_views(pixels)  # noqa: E731
    return time_beside_limit(step, flops, product, arguments.repeats, asked(peer, "vision"))


def time_prefill(model, arguments, weights: str | None, peer: Peer | None = None) -> dict:
    batch, capacity = prompt(model, arguments)
    flops = costs.prefill_flops(model.config.language_config, arguments.prompt_tokens)
    product = square_product(weights or model.weight_dtype)
    step = lambda: model.prefill(batch, capacity)[0]  # noqa: E731
    return time_beside_limit(step, flops, product, arguments.repeats, asked(peer, "prefill"))


def asked(peer: Peer | None, step: str):
    """What asks the peer for a step's seconds."""
    return lambda: peer.seconds(step) if peer else None


def time_decode(model, arguments, weights: str | None, peer: Peer | None = None) -> dict:
    """Steps behind the prompt; the limit is to read weights and cache once, at the speed measured then."""
    batch, capacity = prompt(model, arguments)
    _, cache = model.prefill(batch, capacity)
    token = paddle.to_tensor([[5]])
    model.decode_step(token, cache).numpy()  # the first step lays out the absorbed weights
    seconds = [timed(lambda: model.decode_step(token, cache)) for _ in range(arguments.new_tokens - 1)]
    peak = peak_memory()  # before the block that is read
    median, bandwidth = statistics.median(seconds), read_bandwidth()
    cached = 4 if weights is None and model.weight_dtype == "float32" else 2
    itemsize = {"bfloat16": 2, "int8": 1}.get(weights, cached)
    length = arguments.prompt_tokens + arguments.new_tokens
    limit = costs.decode_bytes(model.config.language_config, length, itemsize, cached) / bandwidth
    return {
        "seconds": median,
        "fastest": min(seconds),
        "limit_seconds": limit,
        "times_limit": median / limit,
        "peer_seconds": asked(peer, "decode")(),
        "bytes_per_second": bandwidth,
        "peak_bytes": peak,
    }


def square_product(dtype: str):
    """A large matrix product in a model's precision; on the CPU all but float32 are the kernels'."""
    x = paddle.rand([MATMUL_SIZE, MATMUL_SIZE])
    if dtype == "float32" or is_gpu():
        x = x.astype(dtype)
        return lambda: paddle.matmul(x, x)[:1]
    packed = ops.pack(x)
    return lambda: ops.linear(x, packed)[:1]


def time_beside_limit(compute, flops: int, product, repeats: int, ask_peer=lambda: None) -> dict:
    """Run ``compute`` several times, each run behind a ``product`` that measures the machine's speed, and
    before the peer's run of the same step."""
    timed(compute)  # touches memory and makes tables for the first time
    ask_peer()
    seconds, limits, others = [], [], []
    for _ in range(repeats):
        fastest = min(timed(product) for _ in range(3))
        limits.append(flops * fastest / (2 * MATMUL_SIZE**3))
        seconds.append(timed(compute))
        others.append(ask_peer())
    ratios = [taken / limit for taken, limit in zip(seconds, limits, strict=True)]
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "limit_seconds": statistics.median(limits),
        "times_limit": statistics.median(ratios),
        "peer_seconds": None if None in others else statistics.median(others),
        "flops_per_second": flops / statistics.median(limits),
    }


def prompt(model, arguments) -> tuple[dict, int]:
    rng = np.random.default_rng(0)
    vocabulary = model.config.language_config.vocab_size
    ids = paddle.to_tensor(rng.integers(0, vocabulary, [1, arguments.prompt_tokens]))
    batch = {"input_ids": ids, "attention_mask": paddle.ones_like(ids)}
    return batch, arguments.prompt_tokens + arguments.new_tokens


def timed(compute) -> float:
    """Seconds of one run; reading the result waits for the device."""
    started = time.perf_counter()
    compute().astype("float32").numpy()
    return time.perf_counter() - started


def read_bandwidth() -> float:
    """Bytes per second of reading a block far larger than the caches, with all cores or the GPU."""
    if is_gpu():
        block = paddle.ones([READ_BYTES // 4], "float32")
        return READ_BYTES / statistics.median(timed(block.max) for _ in range(5))
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
    tiles, tokens, steps = report["tiles"], report["prompt_tokens"], report["steps"]
    notes = {
        "vision": f"{steps['vision']['seconds'] / tiles:.2f} s per tile, {tiles} tiles",
        "prefill": f"{tokens / steps['prefill']['seconds']:.0f} tokens/s, {tokens} tokens",
        "decode": f"{1 / steps['decode']['seconds']:.1f} tokens/s",
    }
    lines = [
        f"{report['model']} on {report['device']}, {report['dtype']}, {report['threads']} threads",
        f"matrix product {steps['vision']['flops_per_second'] / 1e9:.0f} and "
        f"{steps['prefill']['flops_per_second'] / 1e9:.0f} GFLOPS beside vision and prefill, "
        f"read {steps['decode']['bytes_per_second'] / 1e9:.1f} GB/s",
        f"load     {report['load_seconds']:8.1f} s, peak {report['load_peak_bytes'] / 1e9:.2f} GB",
    ]
    lines += [
        f"{name:8} {step['seconds']:8.3f} s (fastest {step['fastest']:.3f}), "
        f"hardware limit {step['limit_seconds']:.3f} s, {step['times_limit']:.2f} x limit; {notes[name]}"
        + (f"; {report['against']} {step['peer_seconds']:.3f} s" if step["peer_seconds"] else "")
        for name, step in steps.items()
    ]
    return "\n".join([*lines, f"peak     {report['peak_bytes'] / 1e9:8.2f} GB"])


if __name__ == "__main__":
    sys.exit(main())
