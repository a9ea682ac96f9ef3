"""Serve a model over HTTP, with OpenAI's chat completions.

    python examples/serve.py --model_path deepseek-ai/deepseek-vl2-tiny --port 8000

Prints the address when it is ready, and ends cleanly on Ctrl-C or SIGTERM. Then:

    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
        -d '{"model": "deepseek-vl2-tiny", "messages": [{"role": "user", "content": "Hello"}]}'

docs/server.md has pictures, streaming, limits and metrics.
"""

import sys

try:
    from paddlemix_vl2.cli.serve import main
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(description=__doc__))
