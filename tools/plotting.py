"""From a figure of the tools that draw to its file."""

from matplotlib.figure import Figure

from paddlemix_vl2.figures.picture import to_picture
from paddlemix_vl2.generation.drawing import save_picture


def save_figure(figure: Figure, file: str) -> None:
    """Draw the figure and write it as ``file`` says by its ending; whole or not at all."""
    save_picture(to_picture(figure), file)
