"""A headless Chromium of the system, for pictures of the web page and for its tests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser() -> str | None:
    """The browser's program; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_page(address: str, width: int = 1200, height: int = 1000, language: str = "en-US") -> Iterator[Page]:
    """The page at ``address`` in a new browser.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    program = find_browser()
    if program is None:
        raise FileNotFoundError(
            f"no browser; install one of {', '.join(NAMES)} (Debian: apt install chromium)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, locale=language)
            page.goto(address)
            yield page
        finally:
            browser.close()
