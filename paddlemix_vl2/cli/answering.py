"""A question with its pictures -> the model's input; its answer -> text on the screen, boxes in a file."""

import argparse
import time
from pathlib import Path

from paddlemix_vl2.cli.arguments import sampling_options
from paddlemix_vl2.cli.program import say


def make_batch(arguments: argparse.Namespace, processor, pictures: list, limit: int):
    """The question as the model reads it.

    Args:
        limit: positions of the model.

    Raises:
        ValueError: the question has another number of ``<image>``, or is too long.
    """
    from paddlemix_vl2.generation.decoding import check_lengths
    from paddlemix_vl2.processing.conversation import place_pictures

    content = place_pictures(arguments.question, len(pictures), processor.image_token)
    conversation = [{"role": "user", "content": content, "images": pictures}]
    batch = processor(conversations=conversation, system_prompt=arguments.system_prompt)
    check_lengths(batch["input_ids"].shape[1], arguments.max_new_tokens, arguments.chunk_size, limit)
    return batch


def stream_answer(model, batch, tokenizer, arguments: argparse.Namespace) -> str:
    """Write the answer to the standard output as it comes, and say how long it took."""
    from paddlemix_vl2.generation.streaming import TextStreamer

    streamer = TextStreamer(tokenizer)
    start = time.perf_counter()
    ids, _ = model.generate(
        **batch,
        **sampling_options(arguments),
        max_new_tokens=arguments.max_new_tokens,
        chunk_size=arguments.chunk_size,
        streamer=streamer,
    )
    say(f"{ids.shape[1]} tokens in {time.perf_counter() - start:.1f} s")
    return streamer.texts[0]


def show_boxes(text: str, picture, output: str | Path | None) -> None:
    """Draw the boxes that an answer names and save the picture; say what was found."""
    if picture is None:
        return
    from paddlemix_vl2.figures.boxes import draw_boxes
    from paddlemix_vl2.files import save_picture
    from paddlemix_vl2.processing.boxes import parse_boxes

    found = parse_boxes(text, picture.size)
    for problem in found.problems:
        say(f"left out: {problem}")
    if found.objects and output:
        save_picture(draw_boxes(picture, found.objects), output)
        say(f"{len(found.objects)} box(es) drawn: {output}")
    elif found.objects:
        say(f"{len(found.objects)} box(es) in the answer; --output FILE draws them")
    elif output:
        say(f"no boxes in the answer; {output} is not written")
