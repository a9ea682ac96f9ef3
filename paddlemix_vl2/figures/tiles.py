"""How a picture becomes tokens: its views, and the source of each token of its span."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from paddlemix_vl2.figures.router_figure import PictureViews
from paddlemix_vl2.layouts.tiles import NEWLINE, SEPARATOR, image_token_sources

GLOBAL_COLOR, NEWLINE_COLOR, SEPARATOR_COLOR = "#9ecae1", "#636363", "#de2d26"
TILE_COLORS = (
    "#fdd0a2",
    "#c7e9c0",
    "#dadaeb",
    "#fcbba1",
    "#c6dbef",
    "#fee391",
    "#d9d9d9",
    "#e5c494",
    "#b3e2cd",
)
KINDS = ("nothing", "global view", "newline", "separator")  # then one per tile
SIZE, DPI = (9.0, 4.2), 110  # inches


def plot_views(views: PictureViews) -> Figure:
    """Global view and tiles as the vision encoder sees them, with the grid of tokens on each."""
    width, height = views.grid
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained", facecolor="white")
    whole, parts = figure.subfigures(1, 2, width_ratios=(1, width / height if width > height else 1))
    _plot_view(whole.subplots(), views.views[0], views.cell, "global view")
    places = parts.subplots(height, width, squeeze=False).flat
    for number, (axes, view) in enumerate(zip(places, views.views[1:], strict=True)):
        _plot_view(axes, view, views.cell, f"tile {number}")
    return figure


def _plot_view(axes, view: np.ndarray, cell: int, title: str) -> None:
    axes.imshow(view)
    axes.set_title(title, fontsize=9)
    edges = np.arange(cell, view.shape[0], cell) - 0.5
    axes.set(xticks=edges, yticks=edges, xticklabels=[], yticklabels=[])
    axes.grid(color="0.25", linewidth=0.6, alpha=0.6)
    axes.tick_params(length=0)


def token_kinds(grid: tuple[int, int], side: int) -> np.ndarray:
    """What each image token is, in order: int64 [num_image_tokens]. 1 is the global view, 2 a newline, 3 the
    separator, 4 + i a feature of tile i.

    >>> token_kinds((1, 1), 1).tolist()
    [1, 2, 3, 4, 2]
    """
    sources = image_token_sources(*grid, side)
    kinds = np.maximum(sources, 0) // side**2  # the view of a feature
    kinds = np.where(kinds == 0, 1, kinds + 3)
    kinds[sources == NEWLINE], kinds[sources == SEPARATOR] = 2, 3
    return kinds


def plot_tokens(grid: tuple[int, int], side: int) -> Figure:
    """A picture's span of tokens, line by line as newlines end them: the global view, the separator, the
    tiles."""
    kinds, num_tiles = token_kinds(grid, side), grid[0] * grid[1]
    ends = np.flatnonzero((kinds == 2) | (kinds == 3)) + 1
    lines = np.split(kinds, ends)[:-1]
    rows = np.zeros((len(lines), max(map(len, lines))), np.int64)
    for row, line in zip(rows, lines, strict=True):
        row[: len(line)] = line
    tiles = [TILE_COLORS[tile % len(TILE_COLORS)] for tile in range(num_tiles)]
    colors = ["white", GLOBAL_COLOR, NEWLINE_COLOR, SEPARATOR_COLOR, *tiles]
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.pcolormesh(
        rows, cmap=ListedColormap(colors), vmin=0, vmax=len(colors), edgecolors="white", linewidth=0.8
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_axis_off()
    starts = np.concatenate([[0], ends[:-1]])
    for line, start in enumerate(starts):
        axes.text(-0.3, line + 0.5, str(start), ha="right", va="center", fontsize=7, color="0.4")
    names = [*KINDS[1:], *(f"tile {tile}" for tile in range(num_tiles))]
    handles = [Patch(color=color, label=name) for name, color in zip(names, colors[1:], strict=True)]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    axes.set_title(f"{len(kinds)} tokens; the number is the first token of its line", fontsize=9)
    return figure
