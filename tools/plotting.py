"""Write the figures of the plotting tools."""

from matplotlib.figure import Figure

from paddlemix_vl2.figures.picture import to_picture
from paddlemix_vl2.files import save_picture


def save_figure(figure: Figure, file: str) -> None:
    """Render the figure and write it in the format of the file's ending, whole or not at all."""
    save_picture(to_picture(figure), file)
