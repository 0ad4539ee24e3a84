"""Writes a comparison as text: plain columns, Markdown or LaTeX (with the package booktabs)."""

from __future__ import annotations

from collections.abc import Callable

from qdmr_ray.errors import SettingsError
from qdmr_ray.evaluate.compare import Cell, Comparison
from qdmr_ray.evaluate.metrics.registry import metric_info

FORMATS = ("plain", "markdown", "latex")
# A smaller p is printed as ``<0.001``.
SMALLEST_P = 0.001
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def comparison_text(comparison: Comparison, style: str = "plain") -> str:
    """Returns the table with its notes; the best mean is bold, in plain text marked by ``*``.
    Raises SettingsError for an unknown format."""
    if style not in FORMATS:
        raise SettingsError(f"--format {style}: choose from {', '.join(FORMATS)}")
    return {"plain": _plain, "markdown": _markdown, "latex": _latex}[style](comparison)


def escape_latex(text: str) -> str:
    """Escapes every character that LaTeX would take for a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def _plain(comparison: Comparison) -> str:
    lines = [
        [_heading(h, "^", "v") for h in _headings(comparison)],
        *_body(comparison, lambda text: f"{text}*", lambda text: text),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    notes = [*comparison.notes, "* best mean; ^ higher is better, v lower is better."]
    return "\n".join([*table, "", *notes]) + "\n"


def _markdown(comparison: Comparison) -> str:
    headings = [_heading(h, "↑", "↓") for h in _headings(comparison)]
    rule = ["---", *["---:"] * (len(headings) - 1)]
    body = _body(comparison, lambda text: f"**{text}**", lambda text: text)
    body = [[text.replace("|", "\\|") for text in line] for line in body]
    table = ["| " + " | ".join(line) + " |" for line in (headings, rule, *body)]
    return "\n".join([*table, "", *comparison.notes]) + "\n"


def _latex(comparison: Comparison) -> str:
    headings = [_heading(h, "$\\uparrow$", "$\\downarrow$") for h in _headings(comparison)]
    body = _body(comparison, lambda text: f"\\textbf{{{text}}}", escape_latex)
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        "\\toprule",
        " & ".join(headings) + r" \\",
        "\\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        "\\bottomrule",
        "\\end{tabular}",
        *(f"% {note}" for note in comparison.notes),
    ]
    return "\n".join(lines) + "\n"


def _headings(comparison: Comparison) -> list[str]:
    """Returns the columns' metrics, each followed by ``p`` where there are rows to compare."""
    tested = len(comparison.rows) > 1
    return ["", *(h for m in comparison.metrics for h in ([m, "p"] if tested else [m]))]


def _heading(metric: str, higher: str, lower: str) -> str:
    if metric in ("", "p"):
        return metric
    info = metric_info(metric)
    unit = f" ({info.unit})" if info.unit else ""
    return f"{info.label}{unit} {({1: higher, -1: lower}).get(info.better, '')}".rstrip()


def _body(
    comparison: Comparison, bold: Callable[[str], str], escape: Callable[[str], str]
) -> list[list[str]]:
    lines = []
    for row, cells in comparison.rows.items():
        line = [escape(row)]
        for metric in comparison.metrics:
            line.append(_cell(cells[metric], metric, bold))
            if len(comparison.rows) > 1:
                line.append(escape(_p(cells[metric].p)))
        lines.append(line)
    return lines


def _cell(cell: Cell, metric: str, bold: Callable[[str], str]) -> str:
    info, known = metric_info(metric), cell.statistics
    text = bold(info.plain(known.mean)) if cell.best else info.plain(known.mean)
    if known.ci95 is None:
        return text
    low, high = map(info.plain, known.ci95)
    return f"{text} [{low}, {high}]"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"<{SMALLEST_P}" if p < SMALLEST_P else f"{p:.3f}"
