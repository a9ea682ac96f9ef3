"""Check this package on a GPU: its numbers, precision, speed and memory, in one report.

    python tools/gpu_check.py --output report.md
    python tools/gpu_check.py --model_path deepseek-ai/deepseek-vl2-tiny --output report.md

compares with the recorded outputs of the published implementation (``tests/golden``), compares 16-bit weights
with float32 on a checkpoint, times it and takes its memory, and writes a report in Markdown to attach to an
issue; the exit code is 1 where a section failed. The report is written again after every section, so that one
is there whatever happens in the next.
"""

import argparse
import gc
import os
import platform
import re
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
    import benchmark  # beside this file

    import paddlemix_vl2
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, device
    from paddlemix_vl2.cli.arguments import OneLineParser
    from paddlemix_vl2.cli.program import exit_code
    from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
    from paddlemix_vl2.files import write_text
    from paddlemix_vl2.generation.decoding import check_lengths
    from paddlemix_vl2.hub import resolve_checkpoint

    # isort: split
    import paddle

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
CASES = ("mha_greedy", "mla_greedy", "mla_noaux_tc")
# As in tests/models/test_gpu.py: TF32 products and 16-bit weights differ from the recorded float32 by less on
# average; a wrong formula differs by whole units.
ALLOWED = {"float32": 1e-2, "bfloat16": 0.5, "float16": 0.5}
RECORDED_STEPS = 24
PICTURES = tuple(
    ROOT / "examples" / "images" / "drawn" / f"{name}.png" for name in ("shapes", "words", "chart")
)
QUESTION = "Describe the picture."

Lines = Iterator[str]
Sections = dict[str, Callable[[], Lines]]


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: check(parse(argv)))


def check(arguments: argparse.Namespace) -> int:
    device.set_device(arguments.device)
    folder = resolve_checkpoint(arguments.model_path)
    language = DeepseekVLV2Config.from_json(folder).language_config
    check_lengths(arguments.prompt_tokens, arguments.new_tokens, None, language.max_sequence_length)
    failed = write_report(arguments.output, sections(folder, arguments))
    print(f"{arguments.output}: {', '.join(failed) + ' failed' if failed else 'every section ran'}")
    return 1 if failed else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    default = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"
    add("--model_path", default=str(default), help="checkpoint folder or hub name (default: the demo's)")
    add("--output", type=Path, required=True, metavar="FILE", help="the report")
    add("--device", default="gpu", help="gpu, gpu:N, or cpu, which leaves out what needs 16 bits")
    add("--prompt_tokens", type=int, default=1024, metavar="N", help="of the timed prompt (default 1024)")
    add("--new_tokens", type=int, default=32, metavar="N", help="decode steps, at least 2 (default 32)")
    add("--tiles", type=int, default=8, metavar="N", help="through the vision tower at once (default 8)")
    add("--repeats", type=int, default=5, metavar="N", help="timings, of which the median counts (default 5)")
    arguments = parser.parse_args(argv)
    if min(arguments.prompt_tokens, arguments.new_tokens - 1, arguments.tiles, arguments.repeats) < 1:
        raise ValueError("--prompt_tokens, --tiles and --repeats are at least 1, --new_tokens at least 2")
    return arguments


def sections(folder: Path, arguments: argparse.Namespace) -> Sections:
    """Title -> what writes the lines below it."""
    return {
        "Environment": partial(environment, folder),
        **{f"Parity in {dtype}": partial(parity, dtype) for dtype in ALLOWED},
        **{
            f"Precision of {dtype}": partial(precision, folder, arguments.new_tokens, dtype)
            for dtype in ("bfloat16", "float16")
        },
        "Memory": partial(memory, folder, arguments),
        "Speed": partial(speed, folder, arguments),
    }


# ---- the report ----


def write_report(output: Path, sections: Sections) -> list[str]:
    """Run the sections in order, with the report of those so far in ``output`` all the time.

    Returns:
        titles of the sections that failed.

    Raises:
        OSError: the report cannot be written.
    """
    texts, failed = {title: ["Not reached."] for title in sections}, []
    save(output, texts)
    for title, write in sections.items():
        print(f"{title} ...", file=sys.stderr, flush=True)
        texts[title] = lines = []
        try:
            with paddle.no_grad():
                lines.extend(write())  # what came before an error stays
        except Exception as error:  # whatever it is, the others can still say something
            lines += ["", f"**Failed:** {in_one_line(error)}"]
            failed.append(title)
        gc.collect()
        save(output, texts)
    return failed


def save(output: Path, texts: dict[str, list[str]]) -> None:
    lines = ["# GPU check of paddlemix_vl2"]
    for title, text in texts.items():
        lines += ["", f"## {title}", "", *text]
    write_text(output, "\n".join(lines) + "\n")


def in_one_line(error: Exception) -> str:
    """Kind, message and the last place in this repository; of Paddle's long messages the summary."""
    message = re.sub(r"-{5,}", " ", str(error).rpartition("Error Message Summary:")[2])
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    place = f" ({Path(ours[-1].filename).relative_to(ROOT)}, line {ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {' '.join(message.split())}{place}"


def header(*titles: str) -> Lines:
    yield row(*titles)
    yield "|---" * len(titles) + "|"


def row(*cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


# ---- the sections ----


def environment(folder: Path) -> Lines:
    yield from header("what", "")
    yield row("paddlemix_vl2", paddlemix_vl2.__version__)
    yield row("Paddle", f"{paddle.version.full_version}, commit {paddle.version.commit}")
    yield row("PaddleNLP", installed_version("paddlenlp"))
    yield row("Python", f"{platform.python_version()}, {platform.platform()}")
    yield row("checkpoint", str(folder).removeprefix(f"{ROOT}{os.sep}"))
    yield row("device", paddle.get_device())
    if not device.is_gpu():
        return
    properties = paddle.device.cuda.get_device_properties()
    yield row("name", properties.name)
    yield row("compute capability", f"{properties.major}.{properties.minor}")
    yield row("memory", gigabytes(properties.total_memory))
    yield row("CUDA, cuDNN of Paddle", f"{paddle.version.cuda()}, {paddle.version.cudnn()}")
    yield row("driver", driver_version())
    yield row("NVIDIA_TF32_OVERRIDE", os.environ.get("NVIDIA_TF32_OVERRIDE", "not set"))


def installed_version(package: str) -> str:
    """Without importing it; only training needs PaddleNLP."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def driver_version() -> str:
    """As ``nvidia-smi`` has it; Paddle does not say."""
    if not shutil.which("nvidia-smi"):
        return "nvidia-smi is not there"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return " ".join(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split())


def parity(dtype: str) -> Lines:
    """Outputs of the recorded checkpoints, whose weights are read in this dtype, beside the recorded ones."""
    if not device.can_compute(dtype):
        yield left_out(dtype)
        return
    yield from header("case", "worst error", "mean error", "allowed mean", "greedy tokens as recorded")
    too_large = []
    for case in CASES:
        model, batch = load(GOLDEN / case, dtype), recorded_batch()
        with np.load(GOLDEN / case / "expected.npz") as file:
            logits, tokens = file["logits_last16"], file["greedy_tokens"]
        errors = np.abs(model(**batch).logits[:, -16:].astype("float32").numpy() - logits)
        answer, _ = model.generate(**batch, max_new_tokens=RECORDED_STEPS, eos_token_id=[])
        same = int((answer.numpy() == tokens[:, :RECORDED_STEPS]).sum())
        yield row(
            case, number(errors.max()), number(errors.mean()), ALLOWED[dtype], f"{same} of {answer.size}"
        )
        if not errors.mean() <= ALLOWED[dtype]:  # not a number is too large as well
            too_large.append(case)
    if too_large:
        raise ValueError(f"the mean error is too large in {', '.join(too_large)}")


def recorded_batch() -> dict[str, paddle.Tensor]:
    with np.load(GOLDEN / "inputs.npz") as file:
        batch = {
            key: paddle.to_tensor(file[key]) for key in file.files if key not in ("position_ids", "labels")
        }
    return {**batch, "images": batch["images"].astype("float32")}


def precision(folder: Path, steps: int, dtype: str) -> Lines:
    """Logits of each token of the answers in float32, beside those of the same tokens in this dtype."""
    if not device.can_compute(dtype):
        yield left_out(dtype)
        return
    wanted = float32_logits(folder, steps)
    yield from header(
        "picture", "prompt", "largest logit", "worst error", "mean error", "greedy tokens that change"
    )
    processor, model = DeepseekVLV2Processor.from_pretrained(folder), load(folder, dtype)
    for picture, logits in zip(PICTURES, wanted, strict=True):
        batch, answer = ask(processor, picture), logits.argmax(axis=1)
        found = answer_logits(model, batch, steps, answer)
        errors, changed = np.abs(found - logits), int((found.argmax(axis=1) != answer).sum())
        prompt = f"{batch['input_ids'].shape[1]} tokens"
        numbers = map(number, (np.abs(logits).max(), errors.max(), errors.mean()))
        yield row(picture.stem, prompt, *numbers, f"{changed} of {len(answer)}")
        if not np.isfinite(found).all():
            raise ValueError(f"{picture.stem}: the logits are not finite")


@lru_cache(maxsize=1)
def float32_logits(folder: Path, steps: int) -> list[np.ndarray]:
    """For each picture, float32 [tokens of the greedy answer, V]."""
    processor, model = DeepseekVLV2Processor.from_pretrained(folder), load(folder, "float32")
    return [answer_logits(model, ask(processor, picture), steps) for picture in PICTURES]


def ask(processor: DeepseekVLV2Processor, picture: Path) -> dict[str, paddle.Tensor]:
    message = {"role": "<|User|>", "content": f"<image>\n{QUESTION}", "images": [str(picture)]}
    return processor(conversations=[message, {"role": "<|Assistant|>", "content": ""}])


def answer_logits(model, batch: dict, steps: int, answer: Iterable[int] | None = None) -> np.ndarray:
    """float32 [tokens, V]: logits from which each token of an answer is chosen.

    Args:
        steps: longest greedy answer; it ends at the stop token.
        answer: tokens to continue with, instead of the greedy ones.
    """
    stops = np.atleast_1d(model.config.language_config.eos_token_id)
    logits, cache = model.prefill(batch, batch["input_ids"].shape[1] + steps)
    chosen = [logits.astype("float32").numpy()[0]]
    while len(chosen) < (steps if answer is None else len(answer)):
        token = int(chosen[-1].argmax()) if answer is None else int(answer[len(chosen) - 1])
        if answer is None and token in stops:
            break
        logits = model.decode_step(paddle.to_tensor([[token]]), cache)
        chosen.append(logits.astype("float32").numpy()[0])
    return np.stack(chosen)


def speed(folder: Path, arguments: argparse.Namespace) -> Lines:
    """As ``tools/benchmark.py`` measures it."""
    flags = {"dtype": device.resolve_dtype("auto"), "backend": "auto", "device": arguments.device}
    flags.update(
        (name, getattr(arguments, name)) for name in ("tiles", "prompt_tokens", "new_tokens", "repeats")
    )
    flags = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    report = benchmark.run(benchmark.parse([str(folder), *flags]))
    steps, tiles, tokens = report["steps"], report["tiles"], report["prompt_tokens"]
    yield from header("step", "milliseconds", "fastest", "hardware limit", "times the limit", "per second")
    for name, count, unit in (
        ("vision", tiles, "tiles"),
        ("prefill", tokens, "tokens"),
        ("decode", 1, "token"),
    ):
        step = steps[name]
        times = (f"{1e3 * step[key]:.3f}" for key in ("seconds", "fastest", "limit_seconds"))
        rate = f"{count / step['seconds']:.1f}"
        yield row(f"{name}, {count} {unit}", *times, f"{step['times_limit']:.2f}", rate)
    flops = [f"{steps[name]['flops_per_second'] / 1e9:.0f}" for name in ("vision", "prefill")]
    yield ""
    yield f"In {report['dtype']}, loaded in {report['load_seconds']:.1f} s. Beside it: matrix product"
    yield f"{' and '.join(flops)} GFLOPS, read {steps['decode']['bytes_per_second'] / 1e9:.1f} GB/s."


def memory(folder: Path, arguments: argparse.Namespace) -> Lines:
    """The most that is held in each step; on the CPU the most that the process has held so far."""
    dtype = device.resolve_dtype("auto")
    yield from header("step", "peak")
    peak_memory()  # what the sections before took is theirs
    yield row("before", gigabytes(peak_memory()))
    model = load(folder, dtype)
    yield row(f"load in {dtype}", gigabytes(peak_memory()))
    batch, capacity = benchmark.prompt(model, arguments)
    logits, cache = model.prefill(batch, capacity)
    logits.numpy()
    yield row(f"prefill, {arguments.prompt_tokens} tokens", gigabytes(peak_memory()))
    for _ in range(2):  # the first step lays out the absorbed weights
        model.decode_step(paddle.to_tensor([[5]]), cache).numpy()
    yield row("two decode steps", gigabytes(peak_memory()))


def peak_memory() -> int:
    """Bytes at most since the last call."""
    peak = benchmark.peak_memory()
    if device.is_gpu():
        paddle.device.cuda.reset_max_memory_allocated()
    return peak


def load(folder: Path, dtype: str) -> DeepseekVLV2ForCausalLM:
    return DeepseekVLV2ForCausalLM.from_pretrained(folder, dtype=dtype, backend="paddle", progress=False)


def left_out(dtype: str) -> str:
    return f"Left out: Paddle does not multiply {dtype} on this device ({paddle.get_device()})."


def number(value: float) -> str:
    return f"{value:.2g}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
