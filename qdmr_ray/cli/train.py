"""``qdmr demo``, ``train``, ``import-weights`` and ``stages``: making trained networks."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from typer import Argument, Option

from qdmr_ray.cli.options import EXIT_FAILED, TRAIN, App, Endpoint, Overrides, WeightsKind
from qdmr_ray.cli.output import bars, print_evaluation, print_table, quick_imports, say, working

if TYPE_CHECKING:
    from qdmr_ray.models.stage_store import Entry, StageStore

app = App(panel=TRAIN)
stages_app = App(
    "stages",
    panel=TRAIN,
    help="List and prune the trained stages that runs share (qdmr train --store).",
    epilog="Example:  qdmr stages list runs/stages",
)
Store = Annotated[str, typer.Argument(metavar="STORE", help="A folder or s3://…")]


@app.command(example="demo --out runs/demo")
def demo(
    out: Path = Option(Path("runs/demo"), help="Run folder."), overrides: Overrides = None
) -> None:
    """Train on real photographs through two lenses, evaluate and report, in a few minutes."""
    with quick_imports():
        from qdmr_ray.demo import run_demo
    from qdmr_ray.storage import open_location

    say(f"run folder {open_location(out).uri}")
    with bars() as progress:
        evaluation = run_demo(out, overrides=overrides or (), say=say, progress=progress)
    print_evaluation(evaluation)
    say(f"open {out / 'report.html'}")
    if evaluation.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command(example="train experiments/demo.yaml --name try1 --set seed=1")
def train(
    experiment: Path = Argument(metavar="EXPERIMENT.yaml", help="Settings of the run."),
    stage: str = Option("all", help="One stage of the experiment, or all."),
    name: str | None = Option(None, help="Name of the run; the experiment's by default."),
    storage: str = Option("runs", help="Where runs lie: a folder or s3://…"),
    store: str | None = Option(None, help="Where runs share trained stages: a folder or s3://…"),
    overrides: Overrides = None,
) -> None:
    """Train an experiment's stages; the same name and storage again resume the run.

    qdmr config show lists every setting of an experiment.
    """
    with quick_imports():
        from qdmr_ray import api

    settings = api.load_experiment(experiment, overrides or (), name=name)
    from qdmr_ray.storage import open_location

    # The line comes before anything can fail: `qdmr jobs fetch` finds a job's folder by it.
    folder = open_location(storage, endpoint=settings.data.s3_endpoint).join(settings.name)
    say(f"run folder {folder.uri}")
    with quick_imports():
        import qdmr_ray.train.run  # noqa: F401

    stages = None if stage == "all" else [stage]
    run = api.train(settings, storage=storage, stages=stages, store=store, say=say)
    say(f"run folder {run.uri}")


@app.command("import-weights", example="import-weights net_g.pth --kind vqgan --out models/vqgan")
def import_weights(
    file: Path = Argument(metavar="FILE.pth", help="The authors' checkpoint."),
    kind: WeightsKind = Option(help="Which of the authors' networks it holds."),
    out: str = Option(help="New folder for the model: a folder or s3://…"),
) -> None:
    """Turn the authors' checkpoint into a model for evaluate, restore, export and training."""
    from qdmr_ray.models.authors import import_authors
    from qdmr_ray.storage import open_location

    for note in import_authors(file, kind, open_location(out)):
        say(f"{file}: {note}")
    say(f"{kind} of {file} into {out}")


@stages_app.command("list", example="stages list s3://bucket/stages")
def list_stages(store: Store, endpoint: Endpoint = None) -> None:
    """List every stage in the store: digest, state, size, and when a run last used it."""
    with working("stages"):
        entries = list(_open(store, endpoint).entries())
    _print_entries(entries)


@stages_app.command("prune", example="stages prune runs/stages --unused-days 30")
def prune_stages(
    store: Store,
    unused_days: float = Option(
        30.0, min=0, help="Choose stages that no run has used for so many days."
    ),
    unfinished: bool = Option(
        False, "--unfinished", help="Also choose unfinished stages that nobody is training."
    ),
    yes: bool = Option(False, "--yes", help="Delete them; without it, they are only listed."),
    endpoint: Endpoint = None,
) -> None:
    """Delete stages that no run has used for long; runs keep their copies."""
    from qdmr_ray.models.stage_store import prunable

    with working("stages"):
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
