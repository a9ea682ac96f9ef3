"""From a figure to a picture, without the windows of matplotlib.pyplot."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def to_picture(figure: Figure, width: int | None = None) -> Image.Image:
    """The figure as an RGB picture.

    Args:
        width: in pixels; what the figure's size and resolution make where absent.
    """
    if width is not None:
        figure.set_dpi(width / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
