"""The command line that the inference examples share: flags, messages, errors.

The answer goes to the standard output while it is generated, everything else to the standard error. What is
wrong with a flag, a path or a picture is said in one line that starts with ``error:``, with exit code 2.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import processes

IMAGE_TOKEN = "<image>"
ENGINES = ("auto", "eager", "native")
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
DEMO_CHECKPOINT = Path(__file__).resolve().parents[1] / "paddlemix_vl2" / "demo" / "checkpoint"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage text in front."""

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the flags")


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every inference example; the caller adds those for pictures."""
    parser = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add_model_flags(parser)
    add(
        "--question",
        required=True,
        help=f"may hold {IMAGE_TOKEN} where a picture belongs; in front otherwise",
    )
    add("--system_prompt", default="", help="text before the conversation (default: none)")
    add("--max_new_tokens", type=positive, default=512, metavar="N", help="longest answer (default 512)")
    add(
        "--chunk_size",
        type=positive,
        metavar="N",
        help="tokens of the prompt to read at a time (default: all)",
    )
    add("--output", metavar="FILE", help="where to save the picture with the boxes that the answer names")
    add(
        "--expert_parallel_degree",
        type=positive,
        default=1,
        metavar="N",
        help="processes of paddle.distributed.launch that share the experts (default 1); see docs/scaling.md",
    )
    sampling = parser.add_argument_group("sampling", "off, unless one of the first three is given")
    add = sampling.add_argument
    add("--temperature", type=float, metavar="T", help="0: take the best token; published example: 0.4")
    add("--top_p", type=float, metavar="P", help="sample from the likeliest tokens that reach P together")
    add("--top_k", type=int, metavar="K", help="sample from the K likeliest tokens")
    add("--repetition_penalty", type=float, default=1.0, metavar="R", help="above 1: repeat less (default 1)")
    add("--seed", type=int, help="makes sampling reproducible")
    return parser


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model answers, and on what it runs."""
    add = parser.add_argument
    add(
        "--model_path",
        default=str(DEMO_CHECKPOINT),
        help="checkpoint folder, or a hub name like deepseek-ai/deepseek-vl2-tiny (default: the small model "
        "that comes with the package)",
    )
    add("--adapter_path", metavar="FOLDER", help="LoRA adapter of that model, to answer with")
    add("--dtype", default="auto", choices=DTYPES, help="of the weights (default auto)")
    add("--engine", default="auto", choices=ENGINES, help="auto, Paddle's operators, or the CPU kernels")
    add("--device", default="auto", help="auto, cpu, gpu or gpu:N")


def positive(text: str) -> int:
    """A flag's value that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def run(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    list_pictures: Callable[[argparse.Namespace], list[str]],
) -> int:
    """Parse the flags and answer.

    Args:
        list_pictures: the picture files that the parsed flags name, in the order of the question.

    Returns:
        the exit code: 0, or 2 after an error.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows what it can
    try:
        arguments = parser.parse_args(argv)
        answer(arguments, list_pictures(arguments))
    except ModuleNotFoundError as error:
        if error.name not in ("paddle", "paddlenlp", "paddlemix_vl2"):
            raise
        return _fail(
            f'{error.name} is not installed; in the repository run: pip install -e ".[cpu]" or ".[gpu]"'
        )
    except (ValueError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    return 0


def answer(arguments: argparse.Namespace, pictures: list[str]) -> None:
    """Answer the question about the pictures, the first mistake of the user first.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    _check_files(arguments, pictures)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing Paddle warns of compilers that inference does not need
        from paddlemix_vl2 import DeepseekVLV2Processor, device
        from paddlemix_vl2.configuration import DeepseekVLV2Config
        from paddlemix_vl2.generation.decoding import check_lengths
        from paddlemix_vl2.generation.drawing import check_output
        from paddlemix_vl2.hub import resolve_checkpoint
        from paddlemix_vl2.processing.conversation import place_pictures
        from paddlemix_vl2.processing.pictures import open_picture

    device.set_device(arguments.device)
    processes.check_flags(arguments)
    dtype = check_precision(arguments)
    # These complain now, not when the model is loaded or has answered.
    sampling_flags(arguments)
    if arguments.output is not None:
        check_output(arguments.output)
    opened = [open_picture(file) for file in pictures]
    check_adapter(arguments.adapter_path)
    folder = resolve_checkpoint(arguments.model_path)
    config = DeepseekVLV2Config.from_json(folder)
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    _check_tokens_per_tile(folder, processor.tokens_per_side, config.image_tokens_per_side)
    content = place_pictures(arguments.question, len(opened), IMAGE_TOKEN)
    batch = processor(
        conversations=[{"role": "<|User|>", "content": content}, {"role": "<|Assistant|>", "content": ""}],
        images=opened,
        system_prompt=arguments.system_prompt,
    )
    limit = config.language_config.max_sequence_length
    check_lengths(batch["input_ids"].shape[1], arguments.max_new_tokens, arguments.chunk_size, limit)
    with processes.together(arguments, config.language_config.n_routed_experts) as dispatcher:
        say(f"loading {folder} in {dtype} on the {'GPU' if device.is_gpu() else 'CPU'}")
        if dispatcher:
            say(f"experts over {arguments.expert_parallel_degree} processes, with the engine eager")
        model = load_model(arguments, folder, dispatcher)
        say(f"reading {batch['input_ids'].shape[1]} tokens, {len(opened)} picture(s) among them")
        text = stream_answer(model, batch, processor.tokenizer, arguments)
        number = getattr(arguments, "draw_on", None) or len(opened)
        show_boxes(text, opened[number - 1], arguments.output)


def check_adapter(folder: str | None) -> None:
    """Complain of an adapter that is not there before the model is loaded.

    Raises:
        ValueError, OSError: there is none, or one of a kind that is not supported.
    """
    if folder is not None:
        from paddlemix_vl2.training.adapters import read_config

        read_config(folder)


def check_precision(arguments: argparse.Namespace) -> str:
    """The dtype of the weights that ``--dtype`` and ``--engine`` lead to on this device.

    Raises:
        ValueError: the device cannot compute with it.
    """
    from paddlemix_vl2 import device
    from paddlemix_vl2.models.engine import choose_weights

    weights = choose_weights(arguments.dtype, engine_of(arguments))
    if weights is None:
        device.check_compute_dtype(device.resolve_dtype(arguments.dtype))
    return weights or device.resolve_dtype(arguments.dtype)


def engine_of(arguments: argparse.Namespace) -> str:
    """Adapters sit on Paddle's layers, which the kernels replace; shared experts need these too."""
    needs_layers = arguments.adapter_path or getattr(arguments, "expert_parallel_degree", 1) > 1
    return "eager" if needs_layers and arguments.engine == "auto" else arguments.engine


def load_model(arguments: argparse.Namespace, folder: str | Path, dispatcher=None):
    """The model, with its adapter where one is given. It is not merged into the weights: in 16 bits these
    could not hold small changes."""
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM

    model = DeepseekVLV2ForCausalLM.from_pretrained(
        folder, dtype=arguments.dtype, engine=engine_of(arguments), dispatcher=dispatcher
    )
    if arguments.adapter_path is None:
        return model
    from paddlemix_vl2.training.adapters import load_adapter

    return load_adapter(model, arguments.adapter_path)


def stream_answer(model, batch: dict, tokenizer, arguments: argparse.Namespace) -> str:
    """Write the answer to the standard output as it comes, and say how long it took."""
    from paddlemix_vl2 import TextStreamer

    streamer = TextStreamer(tokenizer)
    start = time.perf_counter()
    ids, _ = model.generate(
        **batch,
        **sampling_flags(arguments),
        max_new_tokens=arguments.max_new_tokens,
        chunk_size=arguments.chunk_size,
        streamer=streamer,
    )
    say(f"{ids.shape[1]} tokens in {time.perf_counter() - start:.1f} s")
    return streamer.texts[0]


def _check_tokens_per_tile(folder: Path, processor: int, model: int) -> None:
    if processor != model:
        raise ValueError(
            f"{folder}: processor_config.json makes {processor} x {processor} image tokens of a tile, "
            f"config.json {model} x {model}; tile size, patch_size and downsample_ratio of the two must agree"
        )


def _check_files(arguments, pictures: list[str]) -> None:
    """What can be said without importing Paddle."""
    if not arguments.question.strip():
        raise ValueError("--question is empty")
    for file in pictures:
        if not Path(file).exists():
            raise FileNotFoundError(f"{file}: no such file")
    number = getattr(arguments, "draw_on", None)
    if number is not None and number > len(pictures):
        raise ValueError(f"--draw_on {number}: there are only {len(pictures)} picture(s)")


def sampling_flags(arguments: argparse.Namespace) -> dict:
    """The sampling arguments of ``generate``: greedy, unless a flag asks for sampling."""
    from paddlemix_vl2.generation.sampling import SamplingParameters

    names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    return vars(SamplingParameters.asked_for(**{name: getattr(arguments, name) for name in names}))


def show_boxes(text: str, picture, output: str | None) -> None:
    """Draw the boxes that an answer names and save the picture; say what was found."""
    from paddlemix_vl2.generation.grounding import draw_boxes, parse_boxes, save_picture

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


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _fail(error: object, code: int = 2) -> int:
    say("error: " + " ".join(str(error).split()))
    return code
