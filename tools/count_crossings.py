"""Count the files that a computation walks through, and how often it crosses from one to another.

    python tools/count_crossings.py
    python tools/count_crossings.py --trip training --edges

A trip runs once to warm up and once under a profiler, with the demo model. A room is a file of the package; a
crossing is a call from one file into another, whatever lies between (Paddle, numpy). Trips:

    processing   a picture and a question to a batch
    inference    that batch to logits, in one forward pass
    training     a micro-batch of two packed rows to the end of its backward pass
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = f"{ROOT / 'paddlemix_vl2'}/"
DEMO = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"
PICTURE = ROOT / "examples" / "images" / "drawn" / "words.png"
Trip = Callable[[], object]


def count(trip: Trip) -> Counter:
    """(calling file, called file) -> calls, of one run; the caller is the nearest frame of the package, or
    ``outside``."""
    edges: Counter = Counter()

    def profile(frame, event, argument):
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        source = caller.f_code.co_filename if caller is not None else "outside"
        if source != frame.f_code.co_filename:
            edges[source.removeprefix(PACKAGE), frame.f_code.co_filename.removeprefix(PACKAGE)] += 1

    sys.setprofile(profile)
    try:
        trip()
    finally:
        sys.setprofile(None)
    return edges


def rooms(edges: Counter) -> set[str]:
    """The files that were entered."""
    return {called for _, called in edges}


def load_demo():
    """The demo model on Paddle's operators, and its processor."""
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor

    model = DeepseekVLV2ForCausalLM.from_pretrained(DEMO, dtype="float32", backend="paddle", progress=False)
    return model, DeepseekVLV2Processor.from_pretrained(DEMO)


def processing_trip(model, processor) -> Trip:
    conversation = [
        {"role": "<|User|>", "content": "<image>\nRead the text.", "images": [str(PICTURE)]},
        {"role": "<|Assistant|>", "content": ""},
    ]
    return lambda: processor(conversations=conversation)


def inference_trip(model, processor) -> Trip:
    import paddle

    batch = processing_trip(model, processor)()
    model.eval()

    @paddle.no_grad()
    def run():
        return model(**batch)

    return run


def training_trip(model, processor) -> Trip:
    from paddlemix_vl2.data import BatchLoader, Mixture, SourceSpec, open_source

    source = open_source(SourceSpec("synthetic", task="scene"))
    mixture = Mixture([len(source)], [1.0], 0)
    learner = processor.with_settings(mask_prompt=True)
    loader = BatchLoader([source], mixture, learner, batch_size=2, sequence_length=320, packing=True)
    batch, _ = next(iter(loader))
    model.train()
    return lambda: model(**batch.to_tensors()).loss.backward()


TRIPS = {"processing": processing_trip, "inference": inference_trip, "training": training_trip}


def measure(name: str, model, processor) -> Counter:
    """The edges of a trip, after one run to warm up."""
    trip = TRIPS[name](model, processor)
    trip()
    return count(trip)


def run(arguments: argparse.Namespace) -> None:
    model, processor = load_demo()
    for name in [arguments.trip] if arguments.trip else TRIPS:
        edges = measure(name, model, processor)
        print(f"{name}: {len(rooms(edges))} rooms, {sum(edges.values())} crossings")
        if arguments.edges:
            print(
                "".join(
                    f"{calls:6}  {source} -> {called}\n" for (source, called), calls in edges.most_common()
                )
            )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("--trip", choices=TRIPS, help="default: all")
    parser.add_argument("--edges", action="store_true", help="list every pair of files with its calls")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
