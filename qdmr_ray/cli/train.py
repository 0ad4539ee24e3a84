"""``qdmr demo``, ``train`` and ``import-weights``: making trained networks."""

from pathlib import Path

import typer

from qdmr_ray.cli.options import EXIT_FAILED, OVERRIDES, App, WeightsKind, argument, option
from qdmr_ray.cli.output import bars, print_evaluation, quick_imports, say

app = App("Train")


@app.command(example="demo --out runs/demo")
def demo(
    out: Path = option(Path("runs/demo"), "Run folder."), overrides: list[str] | None = OVERRIDES
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
    experiment: Path = argument("EXPERIMENT.yaml", "Settings of the run."),
    stage: str = option("all", "One stage of the experiment, or all."),
    name: str | None = option(None, "Name of the run; the experiment's by default."),
    storage: str = option("runs", "Where runs lie: a folder or s3://…"),
    store: str | None = option(None, "Where runs share trained stages: a folder or s3://…"),
    overrides: list[str] | None = OVERRIDES,
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
    file: Path = argument("FILE.pth", "The authors' checkpoint."),
    kind: WeightsKind = option(..., "Which of the authors' networks it holds."),
    out: str = option(..., "New folder for the model: a folder or s3://…"),
) -> None:
    """Turn the authors' checkpoint into a model for evaluate, restore, export and training."""
    from qdmr_ray.models.authors import import_authors
    from qdmr_ray.storage import open_location

    for note in import_authors(file, kind, open_location(out)):
        say(f"{file}: {note}")
    say(f"{kind} of {file} into {out}")
