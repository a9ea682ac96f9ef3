"""Which expert colours which token and which square of the picture; the figure itself; what is refused."""

import numpy as np
import pytest
from PIL import Image

from paddlemix_vl2.image_layout import image_token_sources


@pytest.fixture(scope="module")
def tools(load_tool):
    tool = load_tool("plot_router")
    import router_figure

    return tool, router_figure


def test_the_first_expert_has_the_largest_weight(tools):
    """With a correction bias the first column is the best by score plus bias, not by weight."""
    experts = np.array([[4, 1], [2, 3], [0, 5]])
    weights = np.array([[0.1, 0.6], [0.5, 0.2], [0.3, 0.3]], np.float32)
    assert tools[0].first_experts(experts, weights).tolist() == [1, 2, 0]


def test_image_cells_of_two_tiles_by_hand(tools):
    """Tokens of a 2 x 1 grid, 2 x 2 per view: global rows with newlines, separator, one row over both tiles
    with its newline. The value of a token is its number."""
    values = np.arange(len(image_token_sources(2, 1, 2)))
    of_view, of_tiles = tools[1].image_cells(values, (2, 1), 2)
    assert of_view.tolist() == [[0, 1], [3, 4]]  # 2 and 5 are newlines, 6 the separator
    assert of_tiles.tolist() == [[7, 8, 9, 10], [12, 13, 14, 15]]  # 11 and 16 are newlines


def test_a_tinted_view_has_its_experts_colours(tools):
    """Four pixels of two by two cells: black pixels show half of the colour."""
    colors = {0: (1.0, 0.0, 0.0), 1: (0.0, 1.0, 0.0)}
    tinted = tools[1].tint(np.zeros([4, 4, 3], np.uint8), np.array([[0, 1], [1, 0]]), 2, colors)
    assert tinted[0, 0].tolist() == [0.5, 0, 0] and tinted[3, 0].tolist() == [0, 0.5, 0]
    assert tinted[2].tolist() == [[1, 1, 1]] * 4  # the edge between the cells


def test_experts_without_a_colour_are_the_rare_ones(tools):
    firsts = np.repeat(np.arange(30), np.arange(30))
    colors = tools[1].expert_colors(firsts, num_experts=30)
    assert list(colors) == list(range(30 - len(tools[1].PALETTE), 30))


def test_letters_without_a_font_are_named(tools):
    figure = tools[1]
    fonts = [("one", set(map(ord, "ab"))), ("two", set(map(ord, "bc")))]
    assert figure.cover({"a"}, fonts) == (["one"], set())
    assert figure.cover(set("abc好"), fonts) == (["one", "two"], {"好"})
    assert figure.readable("\ufffd", 77) == "#77" and figure.readable("a\n", 1) == "a↵"
    assert figure.place_words(["好好", "ab", "c"], columns=5) == [(0, 0), (1, 0), (1, 2)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, load_tool, golden, tokenizer_folders):
    folder = tmp_path_factory.mktemp("router")
    tool = load_tool("make_random_checkpoint")
    config = golden.parent / "examples" / "small_config.json"
    tokenizer = tokenizer_folders["128k"] / "tokenizer.json"
    assert tool.main([str(config), str(folder), "--tokenizer", str(tokenizer)]) == 0
    return folder


@pytest.mark.parametrize("with_picture", [True, False])
def test_a_figure_is_written(with_picture, tools, checkpoint, golden, tmp_path):
    output = tmp_path / "router.png"
    flags = ["--model_path", str(checkpoint), "--text", "One $ and 两个", "--output", str(output)]
    flags += ["--image_file", str(golden / "images" / "small.jpg")] if with_picture else []
    assert tools[0].main(flags) == 0
    picture = np.asarray(Image.open(output))
    assert picture.shape[1] == 1800 and picture.std() > 10
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "0"], "--layer 0: there are no experts; the layers with experts are 1, 2"),
        (["--image_file", "nowhere.png"], "nowhere.png"),
        (["--output", "figure.txt"], "figure.txt"),
        (["--model_path", "./nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_said_in_one_line(flags, message, tools, checkpoint, tmp_path, capsys):
    common = ["--model_path", str(checkpoint), "--output", str(tmp_path / "x.png")]
    assert tools[0].main([*common, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
