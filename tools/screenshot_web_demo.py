"""Take the picture of the web page for the documentation: a question about a picture, answered with boxes.

    python tools/screenshot_web_demo.py docs/images/web_demo.png

serves the page with the small model, asks it in a headless Chromium and saves what is seen.
"""

import argparse
import io
import sys
import tempfile
import warnings
from pathlib import Path

from browser import open_page
from PIL import Image

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code, say

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
    from paddlemix_vl2.files import check_output, save_picture
    from paddlemix_vl2.web.chat import Chat
    from paddlemix_vl2.web.page import Page

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"
PICTURES = ROOT / "examples" / "images" / "drawn"
QUESTION = "Locate <|ref|>the red circle<|/ref|> in the given image."
WIDTH, HEIGHT = 1200, 1000
NUM_COLORS = 256  # of the saved picture, which makes it a third of the size
LOADED = "[...document.querySelectorAll('#chat .bot img')].every(img => img.complete)"
MAX_WAIT = 120_000  # milliseconds


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(make_parser().parse_args(argv)))


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("output", metavar="FILE", help="the picture")
    add("--question", default=QUESTION, help="what to ask")
    add("--image_file", default=str(PICTURES / "shapes.png"), metavar="FILE", help="about which picture")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Serve, ask, save.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    check_output(arguments.output)
    processor = DeepseekVLV2Processor.from_pretrained(CHECKPOINT)
    model = DeepseekVLV2ForCausalLM.from_pretrained(CHECKPOINT)
    with tempfile.TemporaryDirectory() as folder:
        page = Page(Chat(model, processor, Path(folder)), "demo", PICTURES, is_demo=True)
        address = page.launch("127.0.0.1", None)
        try:
            seen = ask(address, arguments.question, arguments.image_file)
        finally:
            page.close()
    picture = Image.open(io.BytesIO(seen)).convert("RGB").quantize(NUM_COLORS)
    save_picture(picture, arguments.output)
    say(f"written: {arguments.output}")


def ask(address: str, question: str, file: str) -> bytes:
    """What the page looks like when the question is answered, as PNG."""
    with open_page(address, WIDTH, HEIGHT) as page:
        page.locator("#question input[type=file]").set_input_files(file)
        page.locator("#question .thumbnail-item").wait_for(timeout=MAX_WAIT)
        page.locator("#question textarea").fill(question)
        page.locator("#question .submit-button").click()
        page.locator("#notice", has_text="tokens").wait_for(timeout=MAX_WAIT)
        page.wait_for_function(LOADED, timeout=MAX_WAIT)
        page.mouse.move(0, 0)
        return page.screenshot(animations="disabled")


if __name__ == "__main__":
    sys.exit(main())
