"""Open pages in a headless Chromium, driven by selenium; tests that need one are skipped where it is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
HEIGHT = 900
# A frame, however late it comes on a busy machine, tells observers what is in sight.
TWO_FRAMES = """
window.scrollTo(0, arguments[0]);
requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(arguments[1])));
"""


@contextmanager
def browser() -> Iterator:
    """A selenium driver without a window; skips the test where Chromium, its driver or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
    from selenium.webdriver.chrome.service import Service

    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def show(opened, page: Path, width: int, dark: bool = False) -> None:
    """Open a page at a width in pixels, as a phone below 600."""
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    opened.get(page.as_uri())
    opened.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    height = opened.execute_script("return document.documentElement.scrollHeight")
    for place in range(0, height + HEIGHT, HEIGHT // 2):  # images are made when they come into sight
        opened.execute_async_script(TWO_FRAMES, place)
