"""``qdmr stages``: what the runs' shared store of trained stages holds."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from qdmr_ray.cli.output import Endpoint, print_table, say

if TYPE_CHECKING:
    from qdmr_ray.models.stage_store import Entry, StageStore

stages_app = typer.Typer(
    help="List and prune stages that runs share (qdmr train --store).",
    epilog="Example:  qdmr stages list runs/stages",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Store = Annotated[str, typer.Argument(metavar="STORE", help="A folder or s3://…")]


@stages_app.command("list", epilog="Example:  qdmr stages list s3://bucket/stages")
def list_stages(store: Store, endpoint: Endpoint = None) -> None:
    """Every stage in the store: digest, state, size, when a run last used it."""
    _print_entries(list(_open(store, endpoint).entries()))


@stages_app.command("prune", epilog="Example:  qdmr stages prune runs/stages --unused-days 30")
def prune_stages(
    store: Store,
    unused_days: Annotated[
        float, typer.Option(min=0, help="Stages that no run has used for so long.")
    ] = 30.0,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also all without a result that nobody trains.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; otherwise only say which.")] = (
        False
    ),
    endpoint: Endpoint = None,
) -> None:
    """Delete stages that nobody uses; runs keep their copies."""
    from qdmr_ray.models.stage_store import prunable

    chosen = prunable(
        _open(store, endpoint).entries(), unused_days=unused_days, unfinished=unfinished
    )
    _print_entries(chosen)
    for entry in chosen if yes else ():
        entry.place.delete()
    done = "deleted" if yes else "to delete (--yes deletes)"
    say(f"{len(chosen)} stages, {sum(entry.bytes for entry in chosen) / 1e6:.1f} MB {done}")


def _open(store: str, endpoint: str | None) -> StageStore:
    from qdmr_ray.models.stage_store import StageStore
    from qdmr_ray.storage import open_location

    return StageStore(open_location(store, endpoint=endpoint), endpoint=endpoint)


def _print_entries(entries: list[Entry]) -> None:
    table = Table("stage", "digest", "state", "MB", "last used")
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M") if entry.used else ""
        size = f"{entry.bytes / 1e6:.1f}"
        table.add_row(entry.stage, entry.digest[:12], entry.state, size, used)
    print_table(table)
