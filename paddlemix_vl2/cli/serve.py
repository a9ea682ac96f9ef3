"""Serve a model over HTTP, with OpenAI's chat completions.

    paddlemix-vl2 serve --model_path deepseek-ai/deepseek-vl2-tiny --port 8000

Prints the address when it is ready, and ends cleanly on Ctrl-C or SIGTERM. Then:

    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
        -d '{"model": "deepseek-vl2-tiny", "messages": [{"role": "user", "content": "Hello"}]}'

docs/server.md has pictures, streaming, limits and metrics.
"""

import argparse
from pathlib import Path

from paddlemix_vl2.cli.arguments import DEMO_CHECKPOINT, add_model_flags, positive
from paddlemix_vl2.cli.loading import announce, check_model_flags, load_model, open_checkpoint
from paddlemix_vl2.cli.program import execute, show

DEMO_NAME = "deepseek-vl2-demo"


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return execute(argv, prog, description, add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
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


def run(arguments: argparse.Namespace) -> int:
    """Load and listen; ends with SystemExit(0) after a signal.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2 import server
    from paddlemix_vl2.serving import ServingEngine

    dtype = check_model_flags(arguments)
    sock = server.bind(arguments.host, arguments.port)
    folder, _, processor = open_checkpoint(arguments.model_path)
    announce(folder, dtype)
    engine = ServingEngine(load_model(arguments, folder), processor, engine_limits(arguments))
    settings = server_settings(arguments)
    app = server.create_app(engine, settings)
    sock.listen()  # who reads the address and connects at once must not be refused
    host, port = sock.getsockname()[:2]
    show(f"{settings.model_name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    server.run(app, engine, sock, arguments.stop_timeout)
    return 0


def engine_limits(arguments: argparse.Namespace):
    """How much is answered at the same time."""
    from paddlemix_vl2.serving import EngineLimits

    return EngineLimits(
        max_running=arguments.max_running,
        max_waiting=arguments.max_waiting,
        max_prompt_tokens=arguments.max_prompt_tokens,
        default_max_tokens=arguments.max_new_tokens,
        chunk_size=arguments.chunk_size,
    )


def server_settings(arguments: argparse.Namespace):
    """What a request may hold."""
    from paddlemix_vl2.server import ServerSettings

    return ServerSettings(
        model_name=model_name(arguments),
        max_body_bytes=arguments.max_body_mb << 20,
        max_pictures=arguments.max_pictures,
        max_pixels=arguments.max_megapixels * 1_000_000,
        allow_remote_images=arguments.allow_remote_images,
    )


def model_name(arguments: argparse.Namespace) -> str:
    """What clients call the model."""
    if arguments.served_model_name:
        return arguments.served_model_name
    return DEMO_NAME if arguments.model_path == str(DEMO_CHECKPOINT) else Path(arguments.model_path).name
