"""Talk with a model about pictures in the browser.

    python examples/web_demo.py
    python examples/web_demo.py --model_path deepseek-ai/deepseek-vl2-tiny --port 8080

prints the address of the page: a chat with any number of pictures, answers as they are generated, boxes drawn
on the picture, in English and Chinese. The page fetches nothing from the internet; only --share makes it
public. Needs gradio: pip install -e ".[cpu,web]".
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import inference_cli

PICTURES = Path(__file__).resolve().parent / "images" / "drawn"


def main(argv: list[str] | None = None) -> int:
    try:
        run(make_parser().parse_args(argv))
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        inference_cli.say(
            'error: gradio is not installed; in the repository run: pip install -e ".[cpu,web]"'
        )
        return 2
    except (ValueError, OSError) as error:
        inference_cli.say("error: " + " ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = inference_cli.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    inference_cli.add_model_flags(parser)
    add(
        "--chunk_size",
        type=inference_cli.positive,
        metavar="N",
        help="tokens of the prompt to read at a time (default: all)",
    )
    add(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for other machines (default: this)"
    )
    add("--port", type=inference_cli.positive, metavar="N", help="default: the first free one from 7860 on")
    add("--share", action="store_true", help="also on a public address, through a server of gradio's makers")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Load the model and serve the page.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing Paddle warns of compilers that are not needed here
        from paddlemix_vl2.web.page import Page
    with tempfile.TemporaryDirectory() as folder:
        chat = load_chat(arguments, Path(folder))
        is_demo = arguments.model_path == str(inference_cli.DEMO_CHECKPOINT)
        name = "demo" if is_demo else arguments.model_path
        page = Page(chat, name, PICTURES, is_demo)
        address = page.launch(arguments.host, arguments.port, arguments.share)
        inference_cli.say(f"the page is at {address}")
        page.wait()


def load_chat(arguments: argparse.Namespace, folder: Path):
    """The model that the flags name, ready to answer; pictures with boxes go to ``folder``."""
    from paddlemix_vl2 import DeepseekVLV2Processor, device
    from paddlemix_vl2.web.chat import Chat

    device.set_device(arguments.device)
    inference_cli.check_precision(arguments)
    inference_cli.check_adapter(arguments.adapter_path)
    processor = DeepseekVLV2Processor.from_pretrained(arguments.model_path)
    model = inference_cli.load_model(arguments, arguments.model_path)
    return Chat(model, processor, folder, arguments.chunk_size)


if __name__ == "__main__":
    sys.exit(main())
