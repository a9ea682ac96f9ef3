"""Serve a model over HTTP, with OpenAI's chat completions.

    python examples/serve.py --model_path deepseek-ai/deepseek-vl2-tiny --port 8000

Prints the address when it is ready, and ends cleanly on Ctrl-C or SIGTERM. Then:

    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
        -d '{"model": "deepseek-vl2-tiny", "messages": [{"role": "user", "content": "Hello"}]}'

docs/server.md has pictures, streaming, limits and metrics.
"""

import argparse
import sys
import warnings
from pathlib import Path

import inference_cli

DEMO_NAME = "deepseek-vl2-demo"


def main(argv: list[str] | None = None) -> int:
    try:
        serve(make_parser().parse_args(argv))
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
            raise
        inference_cli.say(f'error: {error.name} is not installed; run: pip install -e ".[serve]"')
        return 2
    except (ValueError, OSError) as error:
        inference_cli.say("error: " + " ".join(str(error).split()))
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = inference_cli.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    inference_cli.add_model_flags(parser)
    positive = inference_cli.positive
    add = parser.add_argument
    add("--served_model_name", metavar="NAME", help="what clients call it (default: the model path's end)")
    add("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    add("--allow_remote_images", action="store_true", help="fetch pictures from public http(s) URLs")
    add = parser.add_argument_group("limits").add_argument
    add("--max_running", type=positive, default=8, metavar="N", help="answers at the same time (default 8)")
    add("--max_waiting", type=positive, default=32, metavar="N", help="requests in the queue (default 32)")
    add("--max_prompt_tokens", type=positive, metavar="N", help="(default: as many as the model has)")
    add("--max_new_tokens", type=positive, default=512, metavar="N", help="if a request does not say (512)")
    add("--chunk_size", type=positive, default=1024, metavar="N", help="of a prompt at a time (default 1024)")
    add("--max_body_mb", type=positive, default=20, metavar="N", help="size of a request (default 20)")
    add("--max_pictures", type=positive, default=8, metavar="N", help="in a request (default 8)")
    add("--max_megapixels", type=positive, default=50, metavar="N", help="of a picture (default 50)")
    add("--stop_timeout", type=positive, default=30, metavar="S", help="seconds to finish in (default 30)")
    return parser


def serve(arguments: argparse.Namespace) -> None:
    """Load and listen.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
        from paddlemix_vl2 import DeepseekVLV2Processor, device
        from paddlemix_vl2.answering import AnswerService, Limits
        from paddlemix_vl2.hub import resolve_checkpoint
        from paddlemix_vl2.server import ServerSettings, bind, create_app, run
    device.set_device(arguments.device)
    dtype = inference_cli.check_precision(arguments)
    inference_cli.check_adapter(arguments.adapter_path)
    sock = bind(arguments.host, arguments.port)
    folder = resolve_checkpoint(arguments.model_path)
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    inference_cli.say(f"loading {folder} in {dtype} on the {'GPU' if device.is_gpu() else 'CPU'}")
    limits = Limits(
        max_running=arguments.max_running,
        max_waiting=arguments.max_waiting,
        max_prompt_tokens=arguments.max_prompt_tokens,
        default_max_tokens=arguments.max_new_tokens,
        chunk_size=arguments.chunk_size,
    )
    service = AnswerService(inference_cli.load_model(arguments, folder), processor, limits)
    settings = ServerSettings(
        model_name=model_name(arguments),
        max_body_bytes=arguments.max_body_mb << 20,
        max_pictures=arguments.max_pictures,
        max_pixels=arguments.max_megapixels * 1_000_000,
        allow_remote_images=arguments.allow_remote_images,
    )
    app = create_app(service, settings)
    sock.listen()  # who reads the address and connects at once must not be refused
    host, port = sock.getsockname()[:2]
    print(f"{settings.model_name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
    run(app, service, sock, arguments.stop_timeout)


def model_name(arguments: argparse.Namespace) -> str:
    if arguments.served_model_name:
        return arguments.served_model_name
    is_demo = arguments.model_path == str(inference_cli.DEMO_CHECKPOINT)
    return DEMO_NAME if is_demo else Path(arguments.model_path).name


if __name__ == "__main__":
    sys.exit(main())
