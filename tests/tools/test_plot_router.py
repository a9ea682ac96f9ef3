"""The figure is written; what is refused."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("plot_router")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, load_tool, golden, tokenizer_folders):
    folder = tmp_path_factory.mktemp("router")
    tool = load_tool("make_random_checkpoint")
    config = golden.parent / "cli" / "small_config.json"
    tokenizer = tokenizer_folders["128k"] / "tokenizer.json"
    assert tool.main([str(config), str(folder), "--tokenizer", str(tokenizer)]) == 0
    return folder


@pytest.mark.parametrize("with_picture", [True, False])
def test_a_figure_is_written(with_picture, tool, checkpoint, golden, tmp_path):
    output = tmp_path / "router.png"
    flags = ["--model_path", str(checkpoint), "--text", "One $ and 两个", "--output", str(output)]
    flags += ["--image_file", str(golden / "images" / "small.jpg")] if with_picture else []
    assert tool.main(flags) == 0
    picture = np.asarray(Image.open(output))
    assert picture.shape[1] == 1800 and picture.std() > 10
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "0"], "layer 0: there are no experts; the layers with experts are 1, 2"),
        (["--image_file", "nowhere.png"], "nowhere.png"),
        (["--output", "figure.txt"], "figure.txt"),
        (["--model_path", "./nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_said_in_one_line(flags, message, tool, checkpoint, tmp_path, capsys):
    common = ["--model_path", str(checkpoint), "--output", str(tmp_path / "x.png")]
    assert tool.main([*common, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
