"""Writes a comparison as text: plain columns, Markdown or LaTeX (with the package booktabs). Names
come from folders and files of anybody: none of them is a command of the text's language."""

import re
from collections.abc import Callable

from qdmr_ray.errors import SettingsError, printable
from qdmr_ray.evaluate.compare import Cell, Comparison
from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import metric_info

FORMATS = ("plain", "markdown", "latex")
# A smaller p is printed as ``<0.001``.
SMALLEST_P = 0.001
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$"}
)
# ``<0.001`` is no tag.
_MARKDOWN = re.compile(r"[\\|\[`]|<(?=[A-Za-z/!?])")


def comparison_text(comparison: Comparison, style: str = "plain") -> str:
    """Returns the table with its notes; the best mean is bold, in plain text marked by ``*``.
    Raises SettingsError for an unknown format."""
    if style not in FORMATS:
        raise SettingsError(f"--format {style}: choose from {', '.join(FORMATS)}")
    # A line break in a name would end a row, or a comment in LaTeX.
    lines = {"plain": _plain, "markdown": _markdown, "latex": _latex}[style](comparison)
    return "".join(f"{printable(line)}\n" for line in lines)


def escape_markdown(text: str) -> str:
    """Escapes what Markdown takes for a column, a link, code or a tag of HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


def escape_latex(text: str) -> str:
    """Escapes every character that LaTeX would take for a command, and all control characters."""
    escaped = printable(text).translate(_LATEX)
    # At a row's beginning these would belong to the line break or the rule above.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def _plain(comparison: Comparison) -> list[str]:
    table = _cells(comparison, ("^", "v"), "{}*")
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [
        "  ".join([name.ljust(first), *map(str.rjust, cells, others)]).rstrip()
        for name, *cells in table
    ]
    return [*lines, "", *comparison.notes, "* best mean; ^ higher is better, v lower is better."]


def _markdown(comparison: Comparison) -> list[str]:
    headings, *body = _cells(comparison, "↑↓", "**{}**", escape_markdown)
    rule = ["---", *["---:"] * (len(headings) - 1)]
    table = ["| " + " | ".join(line) + " |" for line in (headings, rule, *body)]
    return [*table, "", *map(escape_markdown, comparison.notes)]


def _latex(comparison: Comparison) -> list[str]:
    arrows = "$\\uparrow$", "$\\downarrow$"
    table = _cells(comparison, arrows, "\\textbf{{{}}}", escape_latex)
    headings, *body = (" & ".join(line) + r" \\" for line in table)
    return [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}",
        "\\toprule",
        headings,
        "\\midrule",
        *body,
        "\\bottomrule",
        "\\end{tabular}",
        *(f"% {note}" for note in comparison.notes),
    ]


def _cells(
    comparison: Comparison,
    arrows: tuple[str, str] | str,
    bold: str,
    escape: Callable[[str], str] = str,
) -> list[list[str]]:
    """Returns the table's texts by row, the headings first. ``arrows`` say that higher and that
    lower is better. Each metric is followed by its ``p`` where there are rows to compare."""
    infos = {metric: metric_info(metric) for metric in comparison.metrics}
    tests = len(comparison.rows) > 1
    table = [[""]] + [[escape(row)] for row in comparison.rows]
    for metric, info in infos.items():
        arrow = {1: arrows[0], -1: arrows[1], 0: ""}[info.better]
        unit = f" ({escape(info.unit)})" if info.unit else ""
        cells = [row[metric] for row in comparison.rows.values()]
        heading = f"{escape(info.label)}{unit} {arrow}".rstrip()
        columns = [[heading, *(_mean(c, info, bold) for c in cells)]]
        if comparison.over_seeds:
            columns = [
                [heading, *(_seeds_mean(c, info, bold, escape) for c in cells)],
                ["difference", *(_difference(c, info) for c in cells)],
            ]
        if tests:
            columns.append(["p", *(escape(_p(cell.p)) for cell in cells)])
        for line, texts in zip(table, zip(*columns, strict=True), strict=True):
            line += texts
    return table


def _mean(cell: Cell, info: MetricInfo, bold: str) -> str:
    known = cell.statistics
    text = bold.format(info.plain(known.mean)) if cell.best else info.plain(known.mean)
    if known.ci95 is None:
        return text
    low, high = map(info.plain, known.ci95)
    return f"{text} [{low}, {high}]"


def _seeds_mean(cell: Cell, info: MetricInfo, bold: str, escape: Callable[[str], str]) -> str:
    mean = info.plain(cell.statistics.mean)
    text = bold.format(mean) if cell.best else mean
    return text if cell.spread is None else f"{text} {escape('±')} {info.plain(cell.spread)}"


def _difference(cell: Cell, info: MetricInfo) -> str:
    known = cell.difference
    if known is None:
        return "-"
    text = info.plain(known.mean, signed=True)
    if known.ci95 is None:
        return text
    low, high = (info.plain(value, signed=True) for value in known.ci95)
    return f"{text} [{low}, {high}]"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"<{SMALLEST_P}" if p < SMALLEST_P else f"{p:.3f}"
