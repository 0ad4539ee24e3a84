"""The tables of a ``device.json`` (``device.sh``) in Markdown, as they stand in README.md.

    python tests/benchmarks/device_table.py device/device.json

It needs Python alone. What was refused, failed or took too long stands in the tables, too.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
MIB, GB = 2**20, 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    print("\n".join(document(json.loads(parser.parse_args().results.read_text()))))


def document(results: Row) -> Iterable[str]:
    """Yields the lines of all tables."""
    parts: dict[str, Row] = results["parts"]
    rows = {name: part["rows"] for name, part in parts.items()}
    yield from heading(results, rows.get("machine", []))
    yield from steps([row for name, found in rows.items() if "steps" in name for row in found])
    yield from exchange(rows.get("exchange", []))
    yield from restoring(rows.get("restore", []))
    yield from training(rows.get("training", []))
    yield from profile(rows.get("profile", []))
    yield from tests(rows.get("tests", []))
    for name, part in parts.items():
        if "error" in part:
            yield f"- `{name}` {part['status']} after {part['seconds']:.0f} s: {part['error']}"


def heading(results: Row, rows: Sequence[Row]) -> Iterable[str]:
    """Yields the machine in a paragraph."""
    about = next((row for row in rows if "torch" in row), {})
    cuda = f" (CUDA {about['cuda']})" if "cuda" in about else ""
    where = f"{about.get('device', 'an unknown device')}, torch {about.get('torch', '?')}{cuda}"
    told = "A dry run at toy size, whose times mean nothing: " if results["dry_run"] else ""
    yield f"{told}{where}, {results['date']}, commit {results['commit'] or 'unknown'}."
    for row in rows:
        if "gflops_measured" in row:
            product, convolution = row["gflops_measured"] / 1e3, row["gflops_convolution"] / 1e3
            yield f"TFLOP/s in {row['dtype']}: {product:.3g}, convolutions {convolution:.3g}."
        elif "gigabytes_copied_per_second" in row:
            yield f"Memory is copied at {row['gigabytes_copied_per_second']:.0f} GB/s."
        elif "refused" in row:
            yield f"Rates in {row['dtype']}: {row['refused']}."
    yield ""


def steps(rows: Sequence[Row]) -> Iterable[str]:
    """Yields a table of all builds of all stages; a ratio to the plain build with the same terms,
    and one to the same build without LPIPS and the semantic term."""
    taken = {
        (row["stage"], row["build"], row["backbones"]): row["seconds_per_step"]
        for row in rows
        if "seconds_per_step" in row
    }

    def cells(row: Row) -> Sequence[str]:
        key = row["stage"], row["build"], row["backbones"]
        plain, without = taken.get((key[0], "plain", key[2])), taken.get((*key[:2], False))
        seconds = row["seconds_per_step"]
        return (
            milliseconds(seconds),
            ratio(plain, seconds),
            ratio(seconds, without) if row["backbones"] else "",
            milliseconds(row["floor_seconds"]),
            f"{row['ratio']:.2f}",
            f"{row['start_seconds']:.1f} s",
            f"{row['peak_memory_bytes'] / GB:.2f} GB",
        )

    def names(row: Row) -> Sequence[str]:
        return row["stage"], str(row["batch"]), row["build"], "yes" if row["backbones"] else "no"

    heads = ("stage", "batch", "build", "LPIPS, semantic")
    more = ("a step", "plain / this", "with / without", "floor", "ratio", "first step", "memory")
    yield from table(heads, more, rows, names, cells)


def exchange(rows: Sequence[Row]) -> Iterable[str]:
    """Yields a table of steps with and without an exchange of gradients."""
    alone = {
        row["stage"]: row["seconds_per_step"]
        for row in rows
        if row["gradients"] is None and "seconds_per_step" in row
    }

    def cells(row: Row) -> Sequence[str]:
        distance = row.get("relative_distance")
        return (
            milliseconds(row["seconds_per_step"]),
            ratio(row["seconds_per_step"], alone.get(row["stage"])),
            "" if distance is None else f"{distance:.1e}",
        )

    def names(row: Row) -> Sequence[str]:
        gradients = row["gradients"]
        return row["stage"], "none" if gradients is None else f"{row['backend']}, {gradients}"

    more = ("a step", "with / without", "weights apart")
    yield from table(("stage", "exchange"), more, rows, names, cells)


def restoring(rows: Sequence[Row]) -> Iterable[str]:
    """Yields a table of photographs."""

    def cells(row: Row) -> Sequence[str]:
        return (
            f"{row['seconds']:.2f} s",
            f"{row['first_seconds']:.2f} s",
            f"{row['megapixels_per_second']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['peak_memory_bytes'] / GB:.2f} GB",
        )

    def names(row: Row) -> Sequence[str]:
        if "height" not in row:
            return "", "", ""
        size = f"{row['height']} × {row['width']}"
        # What can't be measured doesn't know what was free.
        memory = f"{row['memory'] // MIB} MiB" if "memory" in row else "what is free"
        return size, row["dtype"], memory

    heads = ("photograph", "type", "for maps")
    more = ("seconds", "the first", "MP/s", "ratio", "peak memory")
    yield from table(heads, more, rows, names, cells)


def training(rows: Sequence[Row]) -> Iterable[str]:
    """Yields a table of short trainings; the terms' sum leaves out what is no term."""

    def cells(row: Row) -> Sequence[str]:
        first, last = (
            f"{sum(x for name, x in row[when].items() if is_term(name)):.3g}"
            for when in ("first", "last")
        )
        return (
            str(row["iterations"]),
            f"{row['samples_per_second']:.1f}",
            f"{first} → {last}" + ("" if row["finite"] else ", **not finite**"),
            f"{row['peak_memory_bytes'] / GB:.2f} GB",
        )

    more = ("iterations", "samples/s", "sum of terms", "memory")
    yield from table(("stage",), more, rows, lambda row: (row["stage"],), cells)


def is_term(name: str) -> bool:
    """Whether a logged value is a term of a loss, and no mean logit and no usage of codes."""
    return not name.endswith("_logit") and not name.startswith("codebook/")


def profile(rows: Sequence[Row]) -> Iterable[str]:
    """Yields a table of the largest operations for each profile."""
    for row in rows:
        terms = "with" if row["backbones"] else "without"
        title = f"A step of {row['stage']}, {terms} LPIPS"
        if "refused" in row:
            yield f"{title}: {row['refused']}\n"
            continue
        whole = row["milliseconds"]
        yield f"{title}: {whole:.1f} ms in\n"
        yield "| operation | calls | ms | share |\n| --- | --- | --- | --- |"
        for one in row["operations"]:
            spent = one["milliseconds"]
            name = escaped(one["name"][:80])
            yield f"| `{name}` | {one['calls']:g} | {spent:.2f} | {ratio(spent, whole)} |"
        yield ""


def tests(rows: Sequence[Row]) -> Iterable[str]:
    """Yields how many tests passed, and which failed."""
    for row in rows:
        if "refused" in row:
            yield f"- Tests: {row['refused']}"
        elif row["outcome"] == "failed":
            yield f"- **{row['test']}** failed: {row['why']}"
    outcomes = [row["outcome"] for row in rows if "outcome" in row]
    if outcomes:
        counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
        yield f"- Tests: {', '.join(f'{count} {name}' for name, count in counts.items())}"


def table(
    names: Sequence[str], results: Sequence[str], rows: Sequence[Row], name_of: Any, cells_of: Any
) -> Iterable[str]:
    """Yields a table with a line for each row: its names, and its results or why it has none;
    nothing without rows."""
    if not rows:
        return
    yield f"| {' | '.join([*names, *results])} |"
    yield "| --- " * (len(names) + len(results)) + "|"
    for row in rows:
        cells = (row["refused"],) if "refused" in row else cells_of(row)
        filled = [*name_of(row), *cells, *[""] * (len(results) - len(cells))]
        yield f"| {' | '.join(map(escaped, filled))} |"
    yield ""


def escaped(text: str) -> str:
    """Returns a text that ends no cell of a table."""
    return text.replace("|", "\\|")


def milliseconds(seconds: float) -> str:
    """Returns seconds in ms, with a digit after the point."""
    return f"{seconds * 1e3:.1f} ms"


def ratio(one: float | None, other: float | None) -> str:
    """Returns a quotient, or nothing where a part of it was not measured."""
    return f"{one / other:.2f}" if one is not None and other else ""


if __name__ == "__main__":
    main()
