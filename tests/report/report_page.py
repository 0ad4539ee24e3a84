"""Reading a report: its text and tags, or the page in a headless Chromium."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

PLOTLY = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
DESKTOP, PHONE = (1280, 900), (390, 844)
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="Chromium is not installed (apt-get install chromium chromium-driver)",
    ),
]


class Page(HTMLParser):
    """The page's text, tags and embedded JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # Without plotly.js, which is what its package ships, byte for byte.
        self.source = path.read_text(encoding="utf-8").replace(PLOTLY.read_text("utf-8"), "")
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.json: dict[str, object] = {}
        self._inside: str | None = None
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.words.append(data)
        elif self._inside == "script" and "id" in self.tags[-1][1]:
            self.json[str(self.tags[-1][1]["id"])] = json.loads(data)

    @property
    def charts(self) -> list[dict[str, Any]]:
        return self.json["chart-data"]["charts"]  # type: ignore[index,call-overload]

    @property
    def photographs(self) -> list[dict]:
        return self.json["viewer-data"]["photographs"]  # type: ignore[index,call-overload]


def open_browser(profile: Path) -> Iterator[Any]:
    """A headless Chromium with its profile in this empty folder; closed afterwards."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def resize(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def emulate(browser: Any, scheme: str) -> None:
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        # Or a click would race with the smooth scrolling that brings its target into view.
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    from selenium.webdriver.support.ui import WebDriverWait

    # Chromium passes it on to the page in its own time.
    asked = f"return matchMedia('(prefers-color-scheme: {scheme})').matches"
    WebDriverWait(browser, 20).until(lambda page: page.execute_script(asked))


def tick_labels(page: Any, chart: str, axis: str) -> list[str]:
    """What stands beside the ticks of an axis, once the chart is drawn."""
    plot = find(page, chart)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    wait_for(page, f"{chart} .{axis}tick text")
    return texts(plot, f".{axis}tick text")


def wait_for(page: Any, selector: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 20).until(lambda page: find(page, selector))


def settled(page: Any, selector: str, wanted: Callable[[list[str]], bool]) -> list[str]:
    """The texts of the elements once they are as ``wanted``: a redrawn chart has new ones."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(page, 20, ignored_exceptions=[StaleElementReferenceException])
    waiting.until(lambda page: wanted(texts(page, selector)))
    return texts(page, selector)


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def texts(page: Any, selector: str) -> list[str]:
    return [found.text for found in page.find_elements("css selector", selector)]
