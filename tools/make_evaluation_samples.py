"""Draw the few questions per task of examples/data, in the layouts of the benchmarks.

    python tools/make_evaluation_samples.py examples/data

prints each file with its number of questions and its size. Pictures are those of the demo's test split.
"""

import base64
import csv
import io
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code
from paddlemix_vl2.demo.questions import SyntheticQuestion
from paddlemix_vl2.demo.samples import make_question
from paddlemix_vl2.demo.vocabulary import COLORS, SHAPES
from paddlemix_vl2.files import write_text
from paddlemix_vl2.processing.boxes import parse_boxes

QUESTIONS_PER_TASK = 4
VOTES = 10  # persons whose answers TextVQA has for a question
LETTERS = "ABCD"
QUALITY = 60
# Files beside the TSVs, about pictures of examples/images.
OWN = [
    {"image": "../images/drawn/words.png", "question": "Read the first line.", "answers": ["6", "six"]},
    {
        "image": "../images/drawn/red_circle.png",
        "question": "What shape is in the picture?",
        "answer": "circle",
    },
    {
        "images": ["../images/drawn/red_circle.png", "../images/drawn/blue_square.png"],
        "question": "<image>\n<image>\nWhich picture shows the blue shape?",
        "answer": "second",
        "metric": "anls",
    },
]
REQUESTS = [
    {"id": "words", "image": "../images/drawn/words.png", "question": "Read the text."},
    {
        "id": "shapes",
        "messages": [
            {
                "role": "user",
                "content": "<image>\nHow many shapes are there?",
                "images": ["../images/drawn/shapes.png"],
            }
        ],
    },
    {
        "id": "two pictures",
        "image": ["../images/drawn/red_circle.png", "../images/drawn/blue_square.png"],
        "question": "Do the two pictures show the same shape?",
    },
]

Drawn = tuple[list[Image.Image], SyntheticQuestion]


def ask(*kinds: str, answers: tuple[str, ...] = ()) -> Iterator[Drawn]:
    """Endless questions, alternating between these kinds; only those with one of these answers, if given."""
    for index in itertools.count():
        for kind in kinds:
            images, question = make_question(kind, "test", index, "en")
            if not answers or question.answer in answers:
                yield images, question


def encode(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=QUALITY)
    return base64.b64encode(content.getvalue()).decode()


def row(number: int, drawn: Drawn) -> dict:
    images, question = drawn
    pictures = [encode(image) for image in images]
    return {
        "index": number,
        "image": pictures[0] if len(pictures) == 1 else str(pictures),
        "question": question.prompt,
        "answer": question.answer,
        "category": question.kind,
    }


def voted(number: int, drawn: Drawn) -> dict:
    return {**row(number, drawn), "answer": str([drawn[1].answer] * VOTES)}


def chosen(number: int, drawn: Drawn) -> dict:
    """The right option at another letter each time; without options where the answer is a number."""
    answer = drawn[1].answer
    pools = (list(COLORS), list(SHAPES), ["first", "second"], ["yes", "no"])
    others = next(([name for name in pool if name != answer] for pool in pools if answer in pool), [])
    if not others:
        return row(number, drawn)
    options = others[: len(LETTERS) - 1]
    place = number % (len(options) + 1)
    options.insert(place, answer)
    return {**row(number, drawn), **dict(zip(LETTERS, options, strict=False)), "answer": LETTERS[place]}


def located(number: int, drawn: Drawn) -> dict:
    (image,), question = drawn
    (found,) = parse_boxes(question.answer, image.size).objects
    box = {"bbox": str(list(found.box)), "width": image.width, "height": image.height}
    fields = {key: value for key, value in row(number, drawn).items() if key != "answer"}
    return {**fields, "question": found.label, **box}


def recognized(number: int, drawn: Drawn) -> dict:
    return {**row(number, drawn), "category": "Regular Text Recognition"}


WORDS = tuple(["first", "second", "yes", "no"])
TASKS = {
    "docvqa": (row, ask("read", "read_line")),
    "infovqa": (row, ask("read_line")),
    "chartqa": (row, ask("chart_value", "chart_max")),
    "textvqa": (voted, ask("read_number")),
    "ocrbench": (recognized, ask("read")),
    "mmmu": (chosen, ask("compare", "count", answers=(*WORDS, *map(str, range(10))))),
    "mmbench": (chosen, ask("colour", "shape")),
    "refcoco": (located, ask("ground")),
}


def make_rows(name: str) -> list[dict]:
    """The rows of a task's file."""
    make, questions = TASKS[name]
    drawn = itertools.islice(questions, QUESTIONS_PER_TASK)
    return [make(number, one) for number, one in enumerate(drawn)]


def to_tsv(rows: list[dict]) -> str:
    content = io.StringIO()
    columns = list(dict.fromkeys(name for one in rows for name in one))
    writer = csv.DictWriter(content, columns, delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()


def to_jsonl(entries: list[dict]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def make(folder: Path) -> None:
    """Write all files.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.tsv": to_tsv(make_rows(name)) for name in TASKS}
    files |= {"own.jsonl": to_jsonl(OWN), "requests.jsonl": to_jsonl(REQUESTS)}
    for name, text in files.items():
        write_text(folder / name, text)
        print(f"{folder / name}: {len(text.splitlines())} lines, {len(text):,} bytes")


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(__doc__)
    parser.add_argument("folder", type=Path)
    return exit_code(lambda: make(parser.parse_args(argv).folder))


if __name__ == "__main__":
    sys.exit(main())
