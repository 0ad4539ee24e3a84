"""``qdmr stages``: the trained stages that runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdmr_ray.cli.options import ENDPOINT, App, argument, flag, option
from qdmr_ray.cli.output import Table, date, print_table, say, working

if TYPE_CHECKING:
    from qdmr_ray.models.stage_store import Entry, StageStore

app = App(
    "Train",
    "stages",
    "List and prune the trained stages that runs share (qdmr train --store).",
    "stages list runs/stages",
)
STORE = argument("STORE", "A folder or s3://…")


@app.command("list", example="stages list s3://bucket/stages")
def list_stages(store: str = STORE, endpoint: str | None = ENDPOINT) -> None:
    """List every stage in the store: digest, state, size, and when a run last used it."""
    with working("stages"):
        entries = list(_open(store, endpoint).entries())
    _print_entries(entries)


@app.command("prune", example="stages prune runs/stages --unused-days 30")
def prune_stages(
    store: str = STORE,
    unused_days: float = option(
        30.0, "Choose stages that no run has used for so many days.", min=0
    ),
    unfinished: bool = flag(
        "--unfinished", "Also choose unfinished stages that nobody is training."
    ),
    yes: bool = flag("--yes", "Delete them; without it, they are only listed."),
    endpoint: str | None = ENDPOINT,
) -> None:
    """Delete stages that no run has used for long; runs keep their copies."""
    with working("stages"):
        stages = _open(store, endpoint)
        chosen = stages.prunable(unused_days=unused_days, unfinished=unfinished)
    _print_entries(chosen)
    if yes:
        kept = [entry for entry in chosen if not stages.remove(entry)]
        for entry in kept:
            say(f"{entry.place.uri}: kept, since another process uses it or has done so meanwhile")
        chosen = [entry for entry in chosen if entry not in kept]
    done = "deleted" if yes else "to delete (--yes deletes)"
    say(f"{len(chosen)} stages, {sum(entry.bytes for entry in chosen) / 1e6:.1f} MB {done}")


def _open(store: str, endpoint: str | None) -> StageStore:
    from qdmr_ray.models.stage_store import StageStore
    from qdmr_ray.storage import open_location

    return StageStore(open_location(store, endpoint=endpoint))


def _print_entries(entries: list[Entry]) -> None:
    table = Table("stage", "digest", "state", "MB", "last used")
    for entry in entries:
        size = f"{entry.bytes / 1e6:.1f}"
        table.add_row(entry.stage, entry.digest[:12], entry.state, size, date(entry.used))
    print_table(table)
