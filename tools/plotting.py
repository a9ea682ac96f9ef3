"""From a figure of the tools that draw to its file."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from paddlemix_vl2.generation.drawing import save_picture


def save_figure(figure: Figure, file: str) -> None:
    """Draw the figure and write it as ``file`` says by its ending; whole or not at all."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_picture(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), file)
