"""What weights of 16 or 8 bits change in a model's logits.

    python tools/compare_precisions.py paddlemix_vl2/demo/checkpoint --samples 50

reads synthetic questions with their right answers (those of examples/evaluate_demo.py) in float32 on Paddle's
operators, then with each kind of ``--weights`` on the CPU kernels, and prints a table: the difference of the
logits that choose the tokens of the answers, and how many of these tokens would be chosen differently.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
    from paddlemix_vl2.cli.arguments import OneLineParser
    from paddlemix_vl2.cli.program import exit_code, say
    from paddlemix_vl2.demo.questions import KINDS
    from paddlemix_vl2.demo.samples import make_question, prompt_messages
    from paddlemix_vl2.demo.vocabulary import LANGUAGES
    from paddlemix_vl2.device import set_device

    # isort: split
    import paddle

COLUMNS = ("mean difference", "largest", "mean / deviation of the logits", "tokens chosen differently")


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(parse_arguments(argv)))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("model_path", help="checkpoint folder with a tokenizer; a random one will do")
    add("--samples", type=int, default=26, metavar="N", help="questions (default 26: each kind and language)")
    add("--weights", nargs="+", default=("bfloat16", "int8"), choices=("bfloat16", "int8"))
    arguments = parser.parse_args(argv)
    if arguments.samples < 1:
        raise ValueError(f"--samples {arguments.samples}: must be at least 1")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    set_device("cpu")
    processor = DeepseekVLV2Processor.from_pretrained(arguments.model_path)
    reference = logits_of(arguments, processor, "float32", "paddle")
    say(f"{sum(map(len, reference))} tokens of {len(reference)} answers")
    rows = [
        compare(reference, logits_of(arguments, processor, it, "cpu_kernels")) for it in arguments.weights
    ]
    print("\n".join(as_table(arguments.weights, rows)))


def logits_of(arguments: argparse.Namespace, processor, dtype: str, backend: str) -> list[np.ndarray]:
    """float32 [A, V] for every question: the logits that choose the A tokens of its answer."""
    model = DeepseekVLV2ForCausalLM.from_pretrained(arguments.model_path, dtype, backend, progress=False)
    found = []
    with paddle.no_grad():
        for messages, answer in questions(arguments.samples):
            prompt = processor(conversations=[messages])["input_ids"].shape[1]
            whole = [*messages, {"role": "<|Assistant|>", "content": answer}]
            logits = model(**processor(conversations=[whole])).logits[0]
            found.append(logits[prompt - 1 : -1].astype("float32").numpy())
    return found


def questions(count: int) -> Iterator[tuple[list[dict], str]]:
    """Prompts with their right answers, alternating between all kinds and languages."""
    for number in range(count):
        language, index = LANGUAGES[number % len(LANGUAGES)], number // len(LANGUAGES)
        kind = KINDS[index % len(KINDS)]
        images, question = make_question(kind, "test", index // len(KINDS), language)
        yield prompt_messages(images, question), question.answer


def compare(reference: list[np.ndarray], found: list[np.ndarray]) -> tuple[float, float, float, str]:
    """Values of ``COLUMNS``."""
    expected, logits = np.concatenate(reference), np.concatenate(found)
    difference = np.abs(logits - expected)
    changed = int((logits.argmax(-1) != expected.argmax(-1)).sum())
    relative = difference.mean() / expected.std()
    return difference.mean(), difference.max(), relative, f"{changed} of {len(logits)}"


def as_table(names: tuple[str, ...], rows: list[tuple]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| weights | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    for name, (mean, largest, relative, changed) in zip(names, rows, strict=True):
        lines.append(f"| {name} | {mean:.4f} | {largest:.3f} | {relative:.4f} | {changed} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
