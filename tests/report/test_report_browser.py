"""The report in a real browser: it works from disk, by mouse and by keyboard, without a network."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report.both_lenses import both_lenses
from report_page import (
    DESKTOP,
    NEEDS_BROWSER,
    PHONE,
    emulate,
    find,
    open_browser,
    resize,
    settled,
    texts,
    tick_labels,
    wait_for,
)

from qdmr_ray.evaluate.codebook.atlas import atlas_picture
from qdmr_ray.evaluate.codebook.compute import CodebookView, write_view
from qdmr_ray.evaluate.codebook.usage import CodebookUsage, SetUsage
from qdmr_ray.report import build_report
from qdmr_ray.report.charts import LOG_AXIS
from qdmr_ray.storage import open_location

HOSTILE = "<img src=x onerror=pwned=1>"
NAMES = ("astronaut", HOSTILE, "chelsea")

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from open_browser(tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="module")
def address(make_run, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("report") / "run", names=NAMES)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["gap"] = both_lenses(NAMES)
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    counts = {"source": (5, 9, 1, 0), "target": (5, 0, 2, 4)}
    usage = CodebookUsage(
        **{name: SetUsage(photographs=1, crops=1, counts=c) for name, c in counts.items()}, crop=8
    )
    tiles = np.full((4, 4, 4, 3), 90, np.uint8)
    write_view(CodebookView(usage, atlas_picture(tiles, usage)), open_location(run))
    # The curves of a long training: what its axes say is read below.
    lines = [
        {
            "iteration": i,
            "time": 1.0 * i,
            HOSTILE: 0.5,
            "learning_rate/generator": 2e-4 * (1 - i / 4e5),
        }
        for i in range(1000, 200_001, 1000)
    ]
    (run / "uda" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Path(build_report(run)).as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The report freshly opened; whatever a test did to it, it must not have raised an error."""
    resize(browser, *DESKTOP)
    emulate(browser, "light")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []


def split(page: Any) -> tuple[str, ...]:
    """Which pictures are seen at four places across the comparison, below the handle."""
    picture = Image.open(io.BytesIO(find(page, "#stage").screenshot_as_png)).convert("RGB")
    row = np.asarray(picture)[round(picture.height * 0.93)].astype(int)
    seen = []
    for share in (0.15, 0.45, 0.55, 0.85):
        colour = row[round((picture.width - 1) * share)]
        grey = np.ptp(colour) < 20
        seen.append("ground_truth" if grey else ("input", "base", "uda")[int(colour.argmax())])
    return tuple(seen)


def test_it_opens_from_disk_without_any_request(browser: Any, address: str) -> None:
    browser.get("about:blank")  # away from the browser's own first page and its requests
    browser.get_log("performance")
    resize(browser, *DESKTOP)
    browser.get(address)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]

    assert requests[0] == address
    assert [url for url in requests[1:] if not url.startswith("data:")] == []
    assert browser.title == "demo – QDMR report"
    assert browser.get_log("browser") == []


def test_the_divider_moves_by_keyboard(page: Any) -> None:
    assert split(page) == ("input", "input", "uda", "uda")
    slider = find(page, "#split")

    slider.send_keys("\ue014" * 20)  # arrow right
    assert split(page) == ("input", "input", "input", "uda")
    assert slider.get_attribute("value") == "70"
    assert slider.get_attribute("aria-valuetext") == "70 % Aberrated input, 30 % UDA"

    slider.send_keys("\ue011")  # home
    assert split(page) == ("uda",) * 4


def test_the_divider_moves_by_mouse_to_where_the_mouse_is(page: Any) -> None:
    from selenium.webdriver import ActionChains

    stage = find(page, "#stage")
    width = stage.size["width"]
    actions = ActionChains(page).move_to_element(stage).click_and_hold()

    actions.move_by_offset(-round(width * 0.25), 0).release().perform()

    assert split(page) == ("input", "uda", "uda", "uda")
    assert find(page, "#split").get_attribute("value") == "25"


def test_what_is_compared_can_be_chosen(page: Any) -> None:
    from selenium.webdriver.support.select import Select

    Select(find(page, "#left")).select_by_visible_text("Ground truth")
    assert split(page) == ("ground_truth", "ground_truth", "uda", "uda")

    Select(find(page, "#right")).select_by_visible_text("Base")
    find(page, "#swap").click()
    assert split(page) == ("base", "base", "ground_truth", "ground_truth")
    assert texts(page, "#stage .tag") == ["Base", "Ground truth"]
    assert find(page, "#over").get_attribute("alt") == "Base of astronaut"


def test_a_photograph_is_chosen_by_keyboard_and_from_the_table(page: Any) -> None:
    find(page, "input[name=photograph]").send_keys("\ue014")
    assert find(page, "#photograph-name").text == HOSTILE
    assert texts(page, "#photograph-figures tbody tr") == [
        "Aberrated input 30.00 0.8000",
        "Base 29.00 0.8000",
        "UDA 31.00 0.8000",
    ]

    find(page, "[data-photograph='2']").click()
    assert find(page, "#photograph-name").text == "chelsea"


def test_names_are_text_and_never_run(page: Any) -> None:
    assert page.execute_script("return typeof pwned") == "undefined"
    assert texts(page, "#per-image tbody th")[1] == HOSTILE
    # Even markup that got in by some other way would not be obeyed.
    page.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", HOSTILE)
    assert page.execute_script("return typeof pwned") == "undefined"
    assert "Content Security Policy" in " ".join(
        entry["message"] for entry in page.get_log("browser")
    )


def test_the_table_sorts_by_any_column_with_missing_figures_last(page: Any) -> None:
    names = "#per-image tbody th"
    heads = page.find_elements("css selector", "#per-image [aria-sort] button")
    assert texts(page, names) == ["astronaut", HOSTILE, "chelsea"]

    heads[1].click()  # PSNR of the input
    assert texts(page, names) == ["chelsea", "astronaut", HOSTILE]
    heads[1].send_keys("\ue007")  # enter: the other way round
    assert texts(page, names) == [HOSTILE, "astronaut", "chelsea"]
    heads[3].click()  # PSNR of UDA, which chelsea has none of
    assert texts(page, names) == ["astronaut", HOSTILE, "chelsea"]
    heads[3].click()
    assert texts(page, names) == [HOSTILE, "astronaut", "chelsea"]
    heads[0].click()
    assert texts(page, names) == [HOSTILE, "astronaut", "chelsea"]
    sorted_by = [
        head.get_attribute("aria-sort")
        for head in page.find_elements("css selector", "#per-image [aria-sort]")
    ]
    assert sorted_by[0] == "ascending"
    assert set(sorted_by[1:]) == {"none"}


def chart_named(page: Any, title: str) -> str:
    """The selector of a chart; charts are drawn once they are near the window."""
    plot = page.execute_script(
        "return [...document.querySelectorAll('figure.chart')].find((figure) => "
        "figure.querySelector('strong').textContent === arguments[0])"
        ".querySelector('[data-chart]')",
        title,
    )
    page.execute_script(
        "arguments[0].closest('details')?.setAttribute('open', '');"
        "arguments[0].scrollIntoView({block: 'center'})",
        plot,
    )
    selector = f"[data-chart='{plot.get_attribute('data-chart')}']"
    wait_for(page, f"{selector} .main-svg")
    return selector


def test_axes_are_labelled_right_at_200_000_iterations_and_at_2e_4(page: Any) -> None:
    stage = page.find_elements("css selector", ".training-stage")[2]
    chart = "[data-chart='{}']".format(
        stage.find_elements("css selector", "details [data-chart]")[0].get_attribute("data-chart")
    )
    page.execute_script("arguments[0].open = true", find(stage, "details:not(.numbers)"))
    x, y = tick_labels(page, chart, "x"), tick_labels(page, chart, "y")

    assert [float(text.replace(",", "")) for text in x] == [50_000, 100_000, 150_000, 200_000]
    assert len(set(x)) == len(x)
    values = [float(text.replace("×10", "e").replace("−", "-").replace("\n", "")) for text in y]
    steps = np.diff(values)
    assert len(values) >= 3
    assert steps == pytest.approx(steps[0])
    assert 1e-4 <= min(values) < max(values) <= 2e-4


def test_a_curve_over_two_decades_has_few_labels(page: Any) -> None:
    """All nine digits of each decade were labelled, one over the other."""
    labels = page.execute_script(
        """
        const place = document.createElement('div');
        place.style.width = '330px';
        place.style.height = '200px';
        document.body.append(place);
        const axis = {...arguments[0], range: [Math.log10(0.0003), Math.log10(0.02)]};
        Plotly.newPlot(place, [{x: [1, 300], y: [0.02, 0.0003]}], {yaxis: axis});
        const texts = [...place.querySelectorAll('.ytick text')].map((text) => text.textContent);
        place.remove();
        return texts;
        """,
        LOG_AXIS,
    )
    assert [float(label) for label in labels] == [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02]


def test_the_numbers_behind_a_chart_are_a_table(page: Any) -> None:
    chart = chart_named(page, "How often each code is chosen")
    assert find(page, chart).get_attribute("aria-label").startswith("Use of 4 codes by source")
    figure = find(page, "#codebook figure.chart")

    find(figure, "summary").click()
    assert texts(figure, "thead th") == ["Code", "Group", "Source %", "Target %"]
    assert texts(figure, "tbody tr")[2:] == ["2 shared 6.667 18.18", "3 the target's own 0 36.36"]
    atlas = find(page, "#codebook .atlas img")
    assert page.execute_script("return arguments[0].naturalWidth", atlas) > 400


def test_the_gap_s_charts_and_tables_say_the_same(page: Any) -> None:
    lenses = chart_named(page, "PSNR on both lenses")
    assert tick_labels(page, lenses, "y") == ["Aberrated input", "Base", "UDA"]
    assert texts(find(page, lenses), ".legendtext") == ["source lens", "target lens"]
    zones = chart_named(page, "Gain over Source-only by place in the field")
    assert tick_labels(page, zones, "x") == ["centre", "middle", "corner"]
    assert texts(find(page, zones), ".legendtext") == ["Base", "UDA"]
    rows = texts(find(page, "#gap"), "table.summary tbody tr")
    assert any(row.startswith("s2t image of it 31.00") for row in rows)


def test_every_chart_is_drawn_and_has_a_table(page: Any) -> None:
    page.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    for plot in page.find_elements("css selector", "[data-chart]"):
        page.execute_script("arguments[0].scrollIntoView()", plot)
        wait_for(page, f"[data-chart='{plot.get_attribute('data-chart')}'] .main-svg")
    figures = page.find_elements("css selector", "figure.chart")
    rows = [len(figure.find_elements("css selector", ".numbers tbody tr")) for figure in figures]
    assert len(rows) >= 11
    assert min(rows) >= 1
    assert page.execute_script("return typeof pwned") == "undefined"


def test_a_chart_is_read_by_the_pointer_and_enlarged_by_dragging(page: Any) -> None:
    from selenium.webdriver import ActionChains

    chart = chart_named(page, "l1")
    plot = find(page, chart)
    ActionChains(page).move_to_element(plot).perform()
    wait_for(page, f"{chart} .hoverlayer text")
    assert "source" in find(page, f"{chart} .hoverlayer").text

    before = texts(page, f"{chart} .xtick text")
    drag = ActionChains(page).move_to_element(plot).click_and_hold().move_by_offset(60, 0)
    drag.release().perform()
    kept = settled(page, f"{chart} .xtick text", lambda found: bool(found) and found != before)
    # What was enlarged stays so when the colours change.
    emulate(page, "dark")
    assert settled(page, f"{chart} .xtick text", bool) == kept


def test_charts_follow_the_colour_scheme(page: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    chart = chart_named(page, "l1")

    def colour() -> str:
        return page.execute_script(
            "return getComputedStyle(document.querySelector(arguments[0])).stroke",
            f"{chart} .scatterlayer .trace:last-child .js-line",
        )

    # The page draws its charts anew, which takes its time beside other tests.
    waiting = WebDriverWait(page, 20)
    light = colour()
    emulate(page, "dark")
    waiting.until(lambda _: colour() != light)
    # On paper all is light again, at once: the browser prints after this event.
    page.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert colour() == light
    page.execute_script("window.dispatchEvent(new Event('afterprint'))")
    waiting.until(lambda _: colour() != light)


def test_details_are_moved_by_keyboard_together(page: Any) -> None:
    def places() -> list[str]:
        crops = page.find_elements("css selector", ".crop")
        return [crop.value_of_css_property("background-position") for crop in crops]

    before = places()
    find(page, ".crop").send_keys("\ue014")

    assert len(before) == 4
    assert len(set(places())) == 1
    assert places() != before


def test_a_phone_shows_the_page_without_scrolling_sideways(page: Any) -> None:
    resize(page, *PHONE)

    assert page.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    chart = chart_named(page, "l1")
    width = page.execute_script("return document.querySelector(arguments[0]).clientWidth", chart)
    assert int(find(page, f"{chart} .main-svg").get_attribute("width")) <= width < PHONE[0]
    assert split(page) == ("input", "input", "uda", "uda")


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
    for selector in (
        ".tile-value",
        ".tile-gain",
        ".gain.better",
        ".gain.worse",
        ".numbers > summary",
    ):
        text = luminance(find(page, selector), "color")
        contrast = (max(text, card) + 0.05) / (min(text, card) + 0.05)
        assert contrast >= 4.5, selector
