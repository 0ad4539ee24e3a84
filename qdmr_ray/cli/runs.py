"""``qdmr runs``: the runs and sweeps in a folder."""

import time
from pathlib import Path

from qdmr_ray.cli.options import ENDPOINT, JSON_FILE, App, argument
from qdmr_ray.cli.output import Table, print_table, say, working, write_json

app = App("Train", "runs", "List runs and sweeps, in progress or ended.", "runs list")


@app.command("list", example="runs list s3://bucket/runs")
def list_runs(
    storage: str = argument("[STORAGE]", "A folder or s3://…", default="runs"),
    json_file: Path | None = JSON_FILE,
    endpoint: str | None = ENDPOINT,
) -> None:
    """List runs and sweeps with their state, stage, iteration, newest metric and age.

    A run or sweep that was stopped goes on when its command is run again.
    """
    from qdmr_ray.report.listing import listed
    from qdmr_ray.storage import open_location

    place = open_location(storage, endpoint=endpoint)
    with working("runs"):
        found = listed(place)
    now = time.time()
    table = Table("name", "kind", "state", "stage", "iteration", "newest", "age")
    for one in found:
        count = "" if one.iteration is None else f"{one.iteration}/{one.iterations or '?'}"
        newest = "" if one.value is None else f"{one.metric} {one.value:.4g}"
        age = "" if one.updated is None else _age(now - one.updated)
        table.add_row(one.name, one.kind, one.state, one.stage, count, one.error or newest, age)
    print_table(table)
    if not found:
        say(f"no run and no sweep in {place.uri}")
    write_json([one.to_dict() for one in found], json_file)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
