"""Eight streaming clients against a server, for minutes: does it lose requests, leak memory, answer wrongly?

    python tools/soak_server.py --minutes 5

starts examples/serve.py with the demo model on a free port and prints a line for every minute: requests,
errors, tokens per second, resident memory. Every answer is compared with the one that the model gives in this
process, alone. The exit code is 1 where one differs or a request fails. Memory should stay what it is after
the first minute.
"""

import argparse
import base64
import io
import itertools
import logging
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"
MODEL = "deepseek-vl2-demo"
MAX_TOKENS = 160
# So often a client goes away in the middle of an answer.
LEAVES_EVERY = 13
MEMORY = "process_resident_memory_bytes"


@dataclass
class Tally:
    """What all clients together have seen."""

    requests: int = 0
    left: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main(argv: list[str] | None = None) -> int:
    tally = Tally()
    code = exit_code(lambda: run(make_parser().parse_args(argv), tally))
    return code or int(bool(tally.wrong or tally.errors or not tally.requests))


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=5.0, help="(default 5)")
    add("--clients", type=int, default=8, help="(default 8)")
    add("--questions", type=int, default=24, help="different ones (default 24)")
    add("--dtype", default="float32", help="of the weights; in 16 bits answers may differ (default float32)")
    return parser


def run(arguments: argparse.Namespace, tally: Tally) -> None:
    """Start, ask, report, stop."""
    for name in ("httpx", "httpx2"):  # a line for every request
        logging.getLogger(name).setLevel(logging.WARNING)
    asked = make_questions(arguments)
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "serve.py"), "--port", "0"]
    command += ["--dtype", arguments.dtype, "--max_running", str(arguments.clients)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        url = read_address(server)
        end = time.monotonic() + 60 * arguments.minutes
        clients = [
            threading.Thread(target=ask_until, args=(end, url, asked, index, tally))
            for index in range(arguments.clients)
        ]
        for client in clients:
            client.start()
        report(end, url, tally)
        for client in clients:
            client.join()
    finally:
        server.terminate()
        code = server.wait(60)
    for problem in (*tally.errors[:5], *tally.wrong[:5]):
        print(problem)
    print(
        f"{tally.requests} requests, {tally.left} of them left early, {len(tally.errors)} errors, "
        f"{len(tally.wrong)} answers differ; the server ended with {code}"
    )


def make_questions(arguments: argparse.Namespace) -> list[tuple[dict, str]]:
    """(message as a client sends it, the model's answer to it alone), about synthetic pictures."""
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
    from paddlemix_vl2.demo.evaluation import answer_all
    from paddlemix_vl2.demo.questions import KINDS
    from paddlemix_vl2.demo.samples import make_question

    model = DeepseekVLV2ForCausalLM.from_pretrained(DEMO, dtype=arguments.dtype)
    processor = DeepseekVLV2Processor.from_pretrained(DEMO)
    asked = []
    for index, kind in zip(range(arguments.questions), itertools.cycle(KINDS), strict=False):
        one = make_question(kind, "test", index, "en" if index % 2 else "zh")
        asked.append((to_message(*one), answer_all(model, processor, [one], MAX_TOKENS)[0]))
    return asked


def to_message(images, question) -> dict:
    """Pictures in front, as the demo model has learned it."""
    parts = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "png")
        data = base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": question.prompt}]}


def read_address(server: subprocess.Popen) -> str:
    """What the server prints when it listens."""
    line = server.stdout.readline()
    if "http://" not in line:
        raise OSError(f"the server did not start; it said {line!r}")
    return line.split()[-1]


def ask_until(end: float, url: str, asked: list[tuple[dict, str]], start: int, tally: Tally) -> None:
    """One client: question after question; now and then it goes away in the middle of an answer."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    for number in itertools.count(start):
        if time.monotonic() > end:
            return
        message, expected = asked[number % len(asked)]
        leaves = number % LEAVES_EVERY == 0
        try:
            text, tokens = read_answer(client, message, leaves)
        except openai.OpenAIError as error:
            with tally.lock:
                tally.errors.append(f"question {number % len(asked)}: {error!r}, {error.__cause__!r}")
            continue
        with tally.lock:
            tally.requests += 1
            tally.left += leaves
            tally.tokens += tokens
            if not leaves and text != expected:
                tally.wrong.append(f"question {number % len(asked)}: {text!r} instead of {expected!r}")


def read_answer(client, message: dict, leaves: bool) -> tuple[str, int]:
    """The text and its tokens; of a client that leaves early the beginning and 0."""
    text, tokens = "", 0
    with client.chat.completions.create(
        model=MODEL,
        messages=[message],
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
            if leaves and text:
                break
    return text, tokens


def report(end: float, url: str, tally: Tally) -> None:
    """A line per minute."""
    before = (0, 0)
    for minute in itertools.count(1):
        start = time.monotonic()
        time.sleep(max(0.0, min(60.0, end - start)))
        seconds = time.monotonic() - start
        with tally.lock:
            requests, tokens, errors = tally.requests, tally.tokens, len(tally.errors)
        print(
            f"minute {minute}: {requests - before[0]} requests, {errors} errors so far, "
            f"{(tokens - before[1]) / seconds:.0f} tokens/s, {read_memory(url) / 2**20:.0f} MB",
            flush=True,
        )
        before = (requests, tokens)
        if time.monotonic() >= end:
            return


def read_memory(url: str) -> float:
    """Resident bytes of the server, from its metrics."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(MEMORY)).split()[1])


if __name__ == "__main__":
    sys.exit(main())
