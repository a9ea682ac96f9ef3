"""Talk with a model about pictures in the browser.

    paddlemix-vl2 web
    paddlemix-vl2 web --model_path deepseek-ai/deepseek-vl2-tiny --port 8080

prints the address of the page: a chat with any number of pictures, answers as they are generated, boxes
on the picture, in English and Chinese. The page fetches nothing from the internet; only --share makes it
public. Needs gradio: pip install "paddlemix-vl2[web]", in the repository pip install -e ".[cpu,web]".
"""

import argparse
import tempfile
from pathlib import Path

from paddlemix_vl2.cli.arguments import DEMO_CHECKPOINT, add_chunk_size, add_model_flags, positive
from paddlemix_vl2.cli.loading import check_model_flags, load_model, open_checkpoint
from paddlemix_vl2.cli.program import execute, say

# Of the repository.
PICTURES = Path(__file__).resolve().parents[2] / "examples" / "images" / "drawn"


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return execute(argv, prog, description, add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_flags(parser)
    add_chunk_size(parser)
    add(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for other machines (default: this)"
    )
    add("--port", type=positive, metavar="N", help="default: the first free one from 7860 on")
    add("--share", action="store_true", help="also on a public address, through a server of gradio's makers")


def run(arguments: argparse.Namespace) -> int:
    """Load the model and serve the page until Ctrl-C.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    from paddlemix_vl2.web.page import Page

    with tempfile.TemporaryDirectory() as folder:
        chat = load_chat(arguments, Path(folder))
        is_demo = arguments.model_path == str(DEMO_CHECKPOINT)
        page = Page(chat, "demo" if is_demo else arguments.model_path, PICTURES, is_demo)
        address = page.launch(arguments.host, arguments.port, arguments.share)
        say(f"the page is at {address}")
        try:
            page.wait()
        except KeyboardInterrupt:
            return 0
    return 0


def load_chat(arguments: argparse.Namespace, folder: Path):
    """The model that the flags name, ready to answer; pictures with boxes go to ``folder``."""
    from paddlemix_vl2.web.chat import Chat

    check_model_flags(arguments)
    checkpoint, _, processor = open_checkpoint(arguments.model_path)
    return Chat(load_model(arguments, checkpoint), processor, folder, arguments.chunk_size)
