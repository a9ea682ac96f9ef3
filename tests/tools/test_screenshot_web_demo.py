"""The documentation's picture of the page is made by one command, and fits."""

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("screenshot_web_demo")


@pytest.mark.slow
def test_the_picture_is_small_and_shows_the_page(tool, tmp_path):
    import browser  # beside the tool

    if browser.find_browser() is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} on the PATH")
    output = tmp_path / "page.png"
    assert tool.main([str(output)]) == 0
    with Image.open(output) as picture:
        assert picture.size == (tool.WIDTH, tool.HEIGHT)
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 50
    assert output.stat().st_size < 200_000
    assert list(tmp_path.iterdir()) == [output]


def test_mistakes_are_one_line(tool, monkeypatch, tmp_path, capsys):
    assert tool.main([str(tmp_path / "page.txt")]) == 2
    monkeypatch.setenv("PATH", "")
    assert tool.main([str(tmp_path / "page.png")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "page.txt" in lines[0] and "no browser; install one of chromium" in lines[1]
