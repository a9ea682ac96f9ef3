"""The figure of a model's routers: expert loads as a heat map, words and image tokens
in their experts' colours.

Knows arrays and strings only, nothing of models.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from paddlemix_vl2.layouts.tiles import image_token_sources

WIDTH, MARGIN = 12.0, 0.35  # of the figure, in inches
DPI = 150
COLUMNS, LINE = 116, 0.27  # letters in a line of text, and its height in inches
GAP = 0.25  # between pictures
LEGEND_COLUMNS = 8
LETTER_PER_EM = 0.602  # width of a letter of DejaVu Sans Mono
CELL_LABELS_UP_TO = 16  # experts; more have no room for numbers in the heat map
TINT, PALE = 0.5, 0.55  # how much of an expert's colour is in a picture's cell, and behind a word
GREY = (0.62, 0.62, 0.62)
# Without the two greys of the map: grey is for the experts that get no colour of their own.
PALETTE = [colormaps["tab20"].colors[i] for i in (*range(0, 14, 2), 16, 18, *range(1, 14, 2), 17, 19)]
TEXT_FONT = "DejaVu Sans Mono"  # comes with matplotlib
WIDE_FONTS = (
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "STHeiti",
    "Arial Unicode MS",
)
VISIBLE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})


@dataclass(frozen=True)
class Reading:
    """What one forward pass shows (T tokens; L MoE layers; E experts).

    Attributes:
        layers: the model's numbers of its MoE layers.
        layer: the one whose tokens are shown.
        expert_share: float [L, E], each expert's share of its layer's choices.
        max_vio, entropy: float [L].
        firsts: int64 [T], every token's first expert in ``layer``.
        is_image: bool [T].
        token_ids: int64 [T].
    """

    layers: list[int]
    layer: int
    expert_share: np.ndarray
    max_vio: np.ndarray
    entropy: np.ndarray
    firsts: np.ndarray
    is_image: np.ndarray
    token_ids: np.ndarray


@dataclass(frozen=True)
class PictureViews:
    """The picture as the model sees it.

    Attributes:
        views: uint8 [1 + tiles, S, S, 3], global view and tiles.
        grid: tiles in width and in height.
        side: image tokens along one side of a view.
        cell: pixels along one side of an image token.
    """

    views: np.ndarray
    grid: tuple[int, int]
    side: int
    cell: int


# ---- colours ----


def expert_colors(firsts: np.ndarray, num_experts: int) -> dict[int, tuple[float, float, float]]:
    """A colour for each expert, or where there are too many for the eye, for those that are first most often;
    the others are shown in ``GREY``."""
    experts = range(num_experts)
    if num_experts > len(PALETTE):
        counts = np.bincount(firsts, minlength=num_experts)
        busiest = np.argsort(-counts, kind="stable")[: len(PALETTE)]
        experts = sorted(int(expert) for expert in busiest if counts[expert])
    return dict(zip(experts, PALETTE, strict=False))


def image_cells(values: np.ndarray, grid: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of a picture's tokens, laid out as the picture; those of newlines and separator are left out.

    Args:
        values: [image tokens].
        grid: tiles in width and in height.

    Returns:
        [side, side] of the global view, [side * height, side * width] of the tiles.
    """
    width, height = grid
    sources = image_token_sources(width, height, side)
    cells = np.empty((1 + width * height) * side * side, values.dtype)
    cells[sources[sources >= 0]] = values[sources >= 0]
    tiles = cells[side * side :].reshape(height, width, side, side).transpose(0, 2, 1, 3)
    return cells[: side * side].reshape(side, side), tiles.reshape(height * side, width * side)


def tint(pixels: np.ndarray, cells: np.ndarray, cell: int, colors: dict) -> np.ndarray:
    """A view with every image token's square in its expert's colour.

    uint8 [S, S, 3] and int64 [side, side] -> float [S, S, 3] from 0 to 1.
    """
    # The last cell may reach beyond the view: 27 patches of 14 pixels make 14 tokens of 28.
    index = (np.arange(pixels.shape[0]) // cell).clip(max=cells.shape[0] - 1)
    table = np.array([colors.get(expert, GREY) for expert in range(int(cells.max()) + 1)])
    grey = (pixels / 255) @ np.array([0.299, 0.587, 0.114])
    tinted = TINT * table[cells[np.ix_(index, index)]] + (1 - TINT) * grey[..., None]
    edges = np.flatnonzero(np.diff(index)) + 1
    tinted[edges], tinted[:, edges] = 1.0, 1.0
    return tinted


# ---- letters ----


def readable(text: str, token_id: int) -> str:
    """A token's text on one line. Pieces of a character, and ids without text, become ``#id``."""
    if not text or "\ufffd" in text:
        return f"#{token_id}"
    text = "␣" * len(text) if text.isspace() and text.isprintable() else text.translate(VISIBLE)
    return "".join(letter if letter.isprintable() else escape(letter, {letter}) for letter in text)


def escape(text: str, missing: set[str]) -> str:
    r"""``text`` with the letters of ``missing`` as codes.

    >>> escape("a好", {"好"})
    'a\\u597d'
    """
    return "".join(
        letter.encode("unicode_escape").decode() if letter in missing else letter for letter in text
    )


def cover(letters: set[str], fonts: Iterable[tuple[str, set[int]]]) -> tuple[list[str], set[str]]:
    """The fonts to use, first to last, and the letters that none of them has.

    Args:
        fonts: name and code points; looked at only while letters are missing.
    """
    used, missing = [], set(letters)
    for name, points in fonts:
        found = {letter for letter in missing if ord(letter) in points}
        if found or not used:
            used.append(name)
        missing -= found
        if not missing:
            break
    return used, missing


def installed_fonts() -> Iterator[tuple[str, set[int]]]:
    """Name and code points of the text's font and of those with Chinese characters."""
    files = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    files[TEXT_FONT] = font_manager.findfont(TEXT_FONT)
    for name in (TEXT_FONT, *WIDE_FONTS):
        if name in files:
            yield name, set(font_manager.get_font(files[name]).get_charmap())


def num_columns(text: str) -> int:
    """Width in letters; Chinese, Japanese and Korean ones count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def place_words(labels: Sequence[str], columns: int) -> list[tuple[int, int]]:
    """Line and column of each label, filled from the left; what ends in a line break ends the line.

    >>> place_words(["ab", " cd", "↵", "e", " fgh"], columns=5)
    [(0, 0), (0, 2), (1, 0), (2, 0), (2, 1)]
    """
    places, line, column = [], 0, 0
    for label in labels:
        if column and column + num_columns(label) > columns:
            line, column = line + 1, 0
        places.append((line, column))
        column += num_columns(label)
        if label.endswith("↵"):
            line, column = line + 1, 0
    return places


# ---- the figure ----


def plot_routing(
    reading: Reading, labels: Sequence[str], fonts: list[str], views: PictureViews | None
) -> Figure:
    """The panels, one below the other, each as high as its content needs.

    Args:
        labels: of the tokens that are not of the picture.
        fonts: font names for the labels.
    """
    colors = expert_colors(reading.firsts, reading.expert_share.shape[1])
    places = place_words(labels, COLUMNS)
    panels = [
        (expert_share_height(reading), lambda panel: plot_expert_share(panel, reading)),
        (legend_height(reading, colors), lambda panel: plot_legend(panel, reading, colors)),
        (words_height(places), lambda panel: plot_words(panel, reading, labels, places, fonts, colors)),
    ]
    if views is not None:
        height = picture_height(views.grid) + 0.75
        panels.append((height, lambda panel: plot_picture(panel, reading, views, colors)))
    heights = [height for height, _ in panels]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, facecolor="white")
    rows = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False, hspace=0)[:, 0]
    for row, (height, fill) in zip(rows, panels, strict=True):
        fill(Panel(row, height))
    return figure


@dataclass(frozen=True)
class Panel:
    """A strip of the figure whose axes are placed in inches, from its upper left corner."""

    area: SubFigure
    height: float

    def axes(self, left: float, top: float, width: float, height: float):
        bottom = self.height - top - height
        sizes = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        return self.area.add_axes(sizes)

    def title(self, text: str, note: str = "") -> None:
        x, y = MARGIN / WIDTH, 1 - 0.3 / self.height
        self.area.text(x, y, text, fontsize=13, weight="bold", va="center")
        self.area.text(1 - x, y, note, fontsize=10.5, color="0.35", va="center", ha="right")


def expert_share_height(reading: Reading) -> float:
    return 1.25 + row_height(reading) * len(reading.layers)


def row_height(reading: Reading) -> float:
    return 0.34 if len(reading.layers) <= 14 else 0.2


def plot_expert_share(panel: Panel, reading: Reading) -> None:
    """Load per layer and expert as a heat map; beside it MaxVio and entropy of every layer."""
    num_layers, num_experts = reading.expert_share.shape
    even, tall = 1 / num_experts, row_height(reading) * num_layers
    panel.title("Expert load", f"share of a layer\u2019s choices; white is an even share, {percent(even)}")
    axes = panel.axes(1.0, 0.6, 6.4, tall)
    norm = TwoSlopeNorm(vmin=0, vcenter=even, vmax=max(2 * even, reading.expert_share.max()))
    image = axes.imshow(
        reading.expert_share, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(num_layers), [f"layer {layer}" for layer in reading.layers])
    axes.get_yticklabels()[reading.layers.index(reading.layer)].set_weight("bold")
    step = max(1, -(-num_experts // 24))
    axes.set_xticks(range(0, num_experts, step))
    axes.set_xlabel("expert")
    axes.tick_params(length=0)
    if num_experts <= CELL_LABELS_UP_TO:
        for (row, column), share in np.ndenumerate(reading.expert_share):
            ink = "white" if abs(norm(share) - 0.5) > 0.32 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9, color=ink)
    scale = panel.area.colorbar(image, cax=panel.axes(7.5, 0.6, 0.13, tall), spacing="proportional")
    scale.set_ticks([0, even, norm.vmax], labels=["0 %", "even", percent(norm.vmax)])
    plot_bars(panel.axes(8.75, 0.6, 1.3, tall), reading.max_vio, "MaxVio", "0 is even")
    most = np.log(num_experts)
    bars = panel.axes(10.3, 0.6, 1.3, tall)
    plot_bars(bars, reading.entropy, "entropy", f"nats, at most {most:.2f}", most)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def plot_bars(axes, values: np.ndarray, name: str, note: str, limit: float | None = None) -> None:
    """One bar per layer with its value, in the rows of the heat map."""
    rows = np.arange(len(values))
    axes.barh(rows, values, height=0.7, color="0.72")
    axes.set_xlim(0, max(float(values.max()), limit or 0, 1e-6) * 1.02)
    axes.set_ylim(len(values) - 0.5, -0.5)
    for row, value in zip(rows, values, strict=True):
        place = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
        axes.text(0.04, row, f"{value:.2f}", **place)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xlabel(f"{name}\n({note})")


def legend_height(reading: Reading, colors: dict) -> float:
    return 0.6 + 0.28 * -(-len(legend_entries(reading, colors)) // LEGEND_COLUMNS)


def legend_entries(reading: Reading, colors: dict) -> list[tuple[str, tuple]]:
    """Label and colour of every expert with a colour, and of the others together."""
    counts = np.bincount(reading.firsts, minlength=reading.expert_share.shape[1])
    entries = [(f"{expert}: {percent(counts[expert] / counts.sum())}", colors[expert]) for expert in colors]
    others = len(counts) - len(colors)
    left = counts.sum() - sum(counts[expert] for expert in colors)
    if others:
        entries.append((f"{others} others: {percent(left / counts.sum())}", GREY))
    return entries


def plot_legend(panel: Panel, reading: Reading, colors: dict) -> None:
    panel.title(
        f"First expert of each token in layer {reading.layer}", "expert: share of the tokens it is first for"
    )
    entries = legend_entries(reading, colors)
    for index, (label, color) in enumerate(entries):
        row, column = divmod(index, LEGEND_COLUMNS)
        pitch = (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS
        axes = panel.axes(MARGIN + pitch * column, 0.56 + 0.28 * row, pitch, 0.24)
        axes.set_axis_off()
        axes.set(xlim=(0, pitch), ylim=(0, 0.24))
        axes.add_patch(Rectangle((0.0, 0.03), 0.22, 0.18, color=color, linewidth=0))
        axes.text(0.28, 0.12, label, fontsize=10, va="center")


def words_height(places: list[tuple[int, int]]) -> float:
    return 0.3 + LINE * (places[-1][0] + 1)


def plot_words(panel: Panel, reading: Reading, labels, places, fonts: list[str], colors: dict) -> None:
    """Every label at its place on its expert's colour; spaces around a word stay white."""
    width = WIDTH - 2 * MARGIN
    axes = panel.axes(MARGIN, 0.12, width, LINE * (places[-1][0] + 1))
    axes.set(xlim=(0, COLUMNS), ylim=(places[-1][0] + 1, 0))
    axes.set_axis_off()
    size = 72 * width / COLUMNS / LETTER_PER_EM
    for label, (line, column), expert in zip(labels, places, reading.firsts[~reading.is_image], strict=True):
        word = label.strip(" ")
        left = column + len(label) - len(label.lstrip(" "))
        color = colors.get(int(expert), GREY)
        box = (left + 0.06, line + 0.1), num_columns(word) - 0.12, 0.8
        axes.add_patch(Rectangle(*box, facecolor=(*color, PALE), linewidth=0))
        # Mathematics is off: a price in dollars is no formula.
        place = {"va": "center_baseline", "family": fonts, "fontsize": size, "parse_math": False}
        axes.text(left, line + 0.5, word, **place)


def picture_height(grid: tuple[int, int]) -> float:
    """As high as fits beside each other: the picture, its global view, its tiles."""
    room = (WIDTH - 2 * MARGIN - 2 * GAP) / (2 + grid[0] / grid[1])
    return min(room, max(3.4, 0.9 * grid[1]))


def plot_picture(panel: Panel, reading: Reading, views: PictureViews, colors: dict) -> None:
    """The global view as it is and tinted, and the tiles tinted."""
    (width, height), side, tall = views.grid, views.side, picture_height(views.grid)
    of_view, of_tiles = image_cells(reading.firsts[reading.is_image], views.grid, side)
    tinted = tint(views.views[0], of_view, views.cell, colors)
    blocks = of_tiles.reshape(height, side, width, side).transpose(0, 2, 1, 3).reshape(-1, side, side)
    tiles = [
        tint(view, block, views.cell, colors) for view, block in zip(views.views[1:], blocks, strict=True)
    ]
    rows = [np.concatenate(tiles[row * width : (row + 1) * width], axis=1) for row in range(height)]
    parts = [
        (tall, views.views[0], "the picture"),
        (tall, tinted, f"global view, {side} x {side} tokens"),
        (tall * width / height, np.concatenate(rows), f"{width} x {height} tile{'s' * (width * height > 1)}"),
    ]
    left = MARGIN
    for wide, pixels, name in parts:
        axes = panel.axes(left, 0.35, wide, tall)
        axes.imshow(pixels, aspect="auto", interpolation="antialiased")
        axes.set_title(name, fontsize=10.5, loc="left", pad=4)
        axes.set(xticks=[], yticks=[])
        left += wide + GAP
    for tile in range(1, width):
        axes.axvline(tile * views.views.shape[1] - 0.5, color="black", linewidth=1.2)
    for tile in range(1, height):
        axes.axhline(tile * views.views.shape[1] - 0.5, color="black", linewidth=1.2)
