"""The report of a sweep in a real browser: sorting, showing one trial everywhere, selecting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_page import (
    DESKTOP,
    NEEDS_BROWSER,
    PHONE,
    emulate,
    find,
    open_browser,
    resize,
    texts,
    wait_for,
)
from sweeps import ablation, search, two_objectives, write

from qdmr_ray.report import build_report

pytestmark = NEEDS_BROWSER
EVIL = "<img src=x onerror=pwned=1>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from open_browser(tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="module")
def address(make_run, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    for number in ("0000", "0002"):
        make_run(folder / "trials" / number)
    content = search()
    content["trials"][3]["error"] = EVIL
    (folder / "best.yaml").write_text("name: best\n")
    return Path(build_report(write(folder, content))).as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The report freshly opened; whatever a test did to it, it must not have raised an error."""
    open_page(browser, address)
    yield browser
    assert browser.get_log("browser") == []


def open_page(browser: Any, address: str) -> None:
    resize(browser, *DESKTOP)
    emulate(browser, "light")
    browser.get(address)


def trials_with(page: Any, selector: str) -> set[str]:
    found = page.find_elements("css selector", selector)
    return {str(element.get_attribute("data-trial")) for element in found}


def test_it_opens_from_disk_without_any_request(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get_log("performance")
    open_page(browser, address)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]

    assert requests[0] == address
    assert [url for url in requests[1:] if not url.startswith("data:")] == []
    assert browser.title == "demo – QDMR report"
    assert browser.execute_script("return typeof pwned") == "undefined"
    assert EVIL in find(browser, ".error").text
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("content", [two_objectives(), ablation()], ids=["front", "ablation"])
def test_other_sweeps_leave_nothing_in_the_console(
    browser: Any, tmp_path: Path, content: dict[str, Any]
) -> None:
    open_page(browser, Path(build_report(write(tmp_path, content))).as_uri())

    for plot in browser.find_elements("css selector", "[data-chart]"):
        browser.execute_script("arguments[0].scrollIntoView()", plot)
        wait_for(browser, f"[data-chart='{plot.get_attribute('data-chart')}'] .main-svg")
    assert browser.get_log("browser") == []


def test_the_table_of_trials_sorts_by_any_column_with_missing_values_last(page: Any) -> None:
    heads = page.find_elements("css selector", "#trials [aria-sort] button")
    rows = "#trials tbody tr"

    def order() -> list[str]:
        found = page.find_elements("css selector", rows)
        return [str(row.get_attribute("data-trial")) for row in found]

    assert [head.text for head in heads][:4] == ["Trial", "State", "PSNR dB", "codebook_size"]
    heads[2].click()
    assert order()[:6] == ["0001", "0000", "0004", "0002-s1", "0002", "0002-s2"]
    assert set(order()[6:]) == {"0003", "0005"}
    heads[2].click()
    assert order()[:3] == ["0002-s2", "0002", "0002-s1"]
    assert set(order()[6:]) == {"0003", "0005"}
    heads[1].click()
    assert texts(page, f"{rows} td:nth-child(2)")[-1].startswith("failed")
    heads[0].click()
    assert order()[0] == "0000"


def test_the_divider_is_between_baseline_and_best(page: Any) -> None:
    assert texts(page, "#stage .tag") == ["Baseline", "Best"]
    slider = find(page, "#split")

    slider.send_keys("\ue014" * 5)  # arrow right
    assert slider.get_attribute("value") == "55"
    assert slider.get_attribute("aria-valuetext") == "55 % Baseline, 45 % Best"


def draw_all(page: Any) -> None:
    """Draws all charts, which happens when they come near the window."""
    for plot in page.find_elements("css selector", "[data-chart]"):
        page.execute_script("arguments[0].scrollIntoView()", plot)
        wait_for(page, f"[data-chart='{plot.get_attribute('data-chart')}'] .main-svg")


def test_a_trial_is_shown_in_all_charts_at_once_and_kept_by_a_click(page: Any) -> None:
    from selenium.webdriver import ActionChains

    draw_all(page)
    sign = find(page, "#search .point[data-trial='0004']")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", sign)

    def point_at(element: Any) -> None:
        ActionChains(page).move_to_element(element).perform()

    point_at(sign)
    wait_for(page, "#search .hoverlayer text")
    assert "trial 0004, finished" in find(page, "#search .hoverlayer").text
    assert trials_with(page, ".shown") == {"0004"}
    # History, curve, line, four slices and the table's row.
    assert len(page.find_elements("css selector", ".shown")) == 8
    heading = find(page, "#search-title")
    point_at(heading)
    assert trials_with(page, ".shown") == set()

    ActionChains(page).move_to_element(sign).click().perform()
    point_at(heading)
    assert trials_with(page, ".shown") == {"0004"}
    # A redrawn chart still shows it.
    emulate(page, "dark")
    assert len(page.find_elements("css selector", ".shown")) == 8
    find(page, "body").send_keys("\ue00c")  # escape
    assert trials_with(page, ".shown") == set()


def test_a_box_over_an_axis_selects_trials_everywhere(page: Any) -> None:
    from selenium.webdriver import ActionChains

    draw_all(page)
    plot = find(page, ".parallel .plot")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    # The last axis is the metric's: 27.1 lies above 26.5 and 26.0.
    place = page.execute_script(
        "const plot = arguments[0], { xaxis, yaxis } = plot._fullLayout;"
        "const { width, height } = plot.getBoundingClientRect();"
        "const y = (value) => yaxis._offset + yaxis.d2p(value);"
        "return [xaxis._offset + xaxis.d2p(4) - width / 2, y(0.98) - height / 2, y(0.7) - y(0.98)]",
        plot,
    )
    across, top, height = map(round, place)
    actions = ActionChains(page).move_to_element_with_offset(plot, across - 20, top)
    actions.click_and_hold().move_by_offset(20, height // 2).move_by_offset(20, height // 2)
    actions.release().perform()

    assert find(page, "#selected").text == "1 of 4 trials selected"
    assert trials_with(page, ".parallel .trace:not(.left-out)") == {"0002"}
    assert "0002" not in trials_with(page, "tr.left-out")
    assert "0000" in trials_with(page, "#search .point.left-out")

    ActionChains(page).move_to_element_with_offset(plot, across - 60, 0).double_click().perform()
    assert trials_with(page, ".left-out") == set()
    assert find(page, "#selected").text == ""


def test_a_phone_shows_the_page_without_scrolling_sideways(page: Any) -> None:
    resize(page, *PHONE)

    assert page.execute_script("return document.documentElement.scrollWidth") == PHONE[0]


def test_on_paper_tables_and_settings_are_whole(page: Any) -> None:
    page.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        resize(page, 1030, 900)  # A4 across, at 96 dots per inch
        assert page.execute_script("return document.documentElement.scrollWidth") <= 1030
        assert "name: best" in find(page, "#settings pre").text
        assert not find(page, "nav").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colour_schemes(page: Any, scheme: str) -> None:
    emulate(page, scheme)

    def luminance(element: Any, name: str) -> float:
        """Relative luminance as WCAG 2 defines it."""
        css = element.value_of_css_property(name)
        levels = [float(v) / 255 for v in css[css.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    card = luminance(find(page, ".card"), "background-color")
    assert (card < 0.1) == (scheme == "dark")
    for selector, name in (
        (".keys", "color"),
        (".error", "color"),
        (".badge.best", "color"),
        (".badge.baseline", "color"),
    ):
        text = luminance(find(page, selector), name)
        contrast = (max(text, card) + 0.05) / (min(text, card) + 0.05)
        assert contrast >= 4.0, selector
