"""``qdmr verify`` and ``doctor``: whether this code and this installation do what they should."""

from pathlib import Path

import typer

from qdmr_ray.cli.options import EXIT_FAILED, JSON_FILE, App, VerifyingDtype, argument, option
from qdmr_ray.cli.output import Table, print_table, say, working
from qdmr_ray.errors import QdmrError

app = App("Developers")


@app.command(example="verify tests/golden --dtype float64")
def verify(
    golden: Path = argument("GOLDEN_DIR", "Folder of golden files, as tests/golden."),
    dtype: VerifyingDtype = option("float64", "Precision of the computation."),
    json_file: Path | None = JSON_FILE,
) -> None:
    """Compare networks, training steps and metrics with golden values of the authors' code."""
    from qdmr_ray.verify.folder import verify_folder, write_comparisons

    comparisons = verify_folder(golden, dtype, say)
    table = Table("figure", "worst difference", "allowed", "")
    for c in comparisons:
        agrees = "agrees" if c.agrees else "DIFFERS"
        table.add_row(c.figure, f"{c.difference:.1e}", f"{c.allowed:.0e}", agrees)
    print_table(table)
    if json_file:
        write_comparisons(comparisons, json_file)
    wrong = sum(not c.agrees for c in comparisons)
    if wrong:
        raise QdmrError(f"{golden}: {wrong} of {len(comparisons)} figures differ too much")
    say(f"all {len(comparisons)} figures agree in {dtype}")


@app.command(example="doctor --storage s3://bucket/runs")
def doctor(
    storage: str = option("runs", "Also try to write here."),
    address: str | None = option(
        None, "Jobs API of a cluster, http://HOST:8265: is it open to strangers?", metavar="URL"
    ),
) -> None:
    """Check versions, devices, Ray, storage and weights, and say how to get what is missing."""
    from qdmr_ray.doctor import examine

    table = Table("what", "found", "state")
    with working("doctor"):
        findings = examine(storage, address)
    for finding in findings:
        table.add_row(finding.what, finding.found, "ok" if finding.ok else finding.remedy)
    print_table(table)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILED)
