"""Talk with a model about pictures in the browser.

    python examples/web_demo.py
    python examples/web_demo.py --model_path deepseek-ai/deepseek-vl2-tiny --port 8080

prints the address of the page: a chat with any number of pictures, answers as they are generated, boxes
on the picture, in English and Chinese. The page fetches nothing from the internet; only --share makes it
public. Needs gradio: pip install -e ".[cpu,web]".
"""

import sys

try:
    from paddlemix_vl2.cli.web import main
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(description=__doc__))
