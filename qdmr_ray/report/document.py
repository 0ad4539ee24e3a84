"""Pages: template, style, scripts and charts put together. A page needs no network: pictures are
data URIs and plotly.js is part of the page. A content security policy lets no script run but the
page's own, so that no text in a file's name or a setting can run as one. Of an address with a
password, a page shows the address alone."""

import base64
import hashlib
import importlib.resources
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2

from qdmr_ray.errors import without_passwords
from qdmr_ray.report.charts import TEMPLATE, Chart

REPORT_FILE = "report.html"
ASSETS = importlib.resources.files("qdmr_ray.report") / "assets"
PLOTLY = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"


def render(template: str, *, styles: Sequence[str], scripts: Sequence[str], **content: Any) -> str:
    """Returns the page that ``template`` makes of ``content``, with these styles and scripts
    inside. A template calls ``draw(chart)`` where a chart stands; the number that it gets back
    identifies the chart's figure for the page's script."""
    charts: list[Chart] = []

    def draw(chart: Chart) -> int:
        charts.append(chart)
        return len(charts) - 1

    script = "\n".join(map(_asset, scripts))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Of a text that is marked as safe, the page's script must keep its digest.
        finalize=lambda value: _shown(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Keys of the page's JSON keep the stages' order.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.policies["json.dumps_function"] = lambda *v, **k: _shown(json.dumps(*v, **k))
    return environment.get_template(template).render(
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style="\n".join(map(_asset, styles)),
        script=script,
        plotly=_plotly(),
        script_digests=[_digest(_plotly()), _digest(script)],
        draw=draw,
        charts=lambda: {"template": TEMPLATE, "charts": [chart.data for chart in charts]},
        **content,
    )


def duration(seconds: float) -> str:
    """Returns ``1 h 12 min`` or ``3 min 5 s``: seconds tell little about a run of hours."""
    if not 0 <= seconds < math.inf:
        return "an unknown time"
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    known = ((hour, "h"), (minute, "min"), (second, "s"))
    parts = [f"{value} {unit}" for value, unit in known if value]
    return " ".join(parts[:2]) or "under 1 s"


def _shown(text: str) -> str:
    """Returns the text as a page can hold it: without passwords, and as valid Unicode."""
    return without_passwords(text).encode(errors="replace").decode()


@cache
def _plotly() -> str:
    """Returns plotly.js as the installed package ships it (4.8 MB, so a page has it once)."""
    return PLOTLY.read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
