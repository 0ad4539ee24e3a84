"""No name of a run, a stage or a metric runs as a command in the tables of ``qdmr compare``."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from qdmr_ray.evaluate import compare_text
from qdmr_ray.evaluate.compare_text import FORMATS, comparison_text, escape_latex

LATEX = {
    "reads a file": r"\input{/etc/passwd}",
    "runs a program": r"\immediate\write18{touch X}",
    "a backslash by its number": "^^5cinput{x}",
    "ends a comment": "a\n\\input{x}",
    "ends a comment as Mac did": "a\r\\input{x}",
    "ends a comment as Unicode": "a\u2028\\input{x}",
    "ends a comment by its number": "a^^M\\input{x}",
    "ends a page": "a\x0c\\input{x}",
    "a formula": r"$\input{x}$",
    "a comment": "a%b",
    "a column": "a&b",
    "an argument": "#1",
    "braces": "}{",
    "an active character": "~",
    "a null byte": "a\0b",
}
MARKDOWN = {
    "a column": "a|b",
    "an escaped column": "a\\|b",
    "a link": "[a](javascript:alert(1))",
    "a picture": "![a](http://x/a.png)",
    "a script": "<script>alert(1)</script>",
    "a tag without end": "<img src=x onerror=alert(1) ",
    "code": "a`b",
    "a line of its own": "a\n# b",
}


def table(name: str, style: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The table of a comparison in which everything has this name."""
    info = SimpleNamespace(label=name, unit=name, better=1, plain=str)
    monkeypatch.setattr(compare_text, "metric_info", lambda _: info)
    cell: Any = SimpleNamespace(statistics=SimpleNamespace(mean=1, ci95=None), best=True, p=None)
    rows = {name: {"psnr": cell}, "b": {"psnr": cell}}
    comparison: Any = SimpleNamespace(
        metrics=["psnr"], rows=rows, notes=[f"Over {name}"], over_seeds=False
    )
    return comparison_text(comparison, style)


@pytest.mark.parametrize("name", LATEX.values(), ids=LATEX.keys())
def test_latex_gets_no_command_out_of_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = table(name, "latex", monkeypatch).removesuffix("\n").split("\n")
    assert len(lines) == 10
    assert all(line.isprintable() for line in lines)
    code = "\n".join(line for line in lines if not line.startswith("%"))
    ours = "usepackage begin end tabular toprule midrule bottomrule textbf uparrow"
    escapes = "textbackslash textasciitilde textasciicircum textless textgreater"
    assert set(re.findall(r"\\([A-Za-z]+)", code)) <= {*ours.split(), *escapes.split()}
    # What is left has no meaning to LaTeX but for the table's own rows, columns and arrow.
    left = re.sub(r"\\[A-Za-z]+(\{\})?|\\[&%$#_{}]|\{[lr]*\}", "", code)
    assert not set("^~#%") & set(left)
    assert left.count("&") == 2 * 3
    assert left.count("$") == 2
    assert left.count("{") == left.count("}") == 4


@pytest.mark.parametrize("name", ["[2cm]", "*", "[", "*[1cm]"])
def test_a_row_of_latex_begins_with_no_argument(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"\n{{}}{name} & " in table(name, "latex", monkeypatch)
    assert escape_latex(f"a{name}") == f"a{name}"


@pytest.mark.parametrize("name", MARKDOWN.values(), ids=MARKDOWN.keys())
def test_markdown_gets_nothing_but_text_out_of_a_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = table(name, "markdown", monkeypatch)
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == 6
    plain = re.sub(r"\\.", "", text)
    assert not re.search(r"[\[`]|<[a-z/]", plain)
    # Three columns in each row.
    assert plain.count("|") == 4 * 4


@pytest.mark.parametrize("style", FORMATS)
def test_an_ordinary_name_stays(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "real-sim.s1/uda (2)" in table("real-sim.s1/uda (2)", style, monkeypatch)
