"""What the tools that draw share: errors in one line, and the figure's file."""

import argparse
import sys
from collections.abc import Callable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from paddlemix_vl2.generation.drawing import save_picture


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage text in front."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the flags")


def exit_code(run: Callable[[], None]) -> int:
    """0, or 2 where ``run`` raised what the user has to change, said in one line."""
    try:
        run()
    except (ValueError, OSError) as error:
        say("error: " + " ".join(str(error).split()))
        return 2
    return 0


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def save_figure(figure: Figure, file: str) -> None:
    """Draw the figure and write it as ``file`` says by its ending; whole or not at all."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_picture(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), file)
