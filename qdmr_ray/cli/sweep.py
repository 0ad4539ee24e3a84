"""``qdmr sweep``: many runs of an experiment, to find settings or to compare variants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdmr_ray.cli.options import OVERRIDES, App, argument, flag, option
from qdmr_ray.cli.output import Table, bars, print_table, quick_imports, say

if TYPE_CHECKING:
    from qdmr_ray.evaluate.sweep_file import SweepFile
    from qdmr_ray.sweeps.plan import Plan

app = App("Train")
# `qdmr demo` keeps its data here; sweeps of the demo's experiment use the same.
DEMO_FOLDER = Path("runs/demo")


@app.command(example="sweep experiments/sweeps/demo.yaml --name try1")
def sweep(
    file: Path = argument("SWEEP.yaml", "Experiment, search space and budget."),
    name: str | None = option(None, "Name of the sweep; the file's by default."),
    storage: str = option("runs/sweeps", "Where sweeps lie: a folder or s3://…"),
    retry_failed: bool = flag("--retry-failed", "Begin failed trials again."),
    overrides: list[str] | None = OVERRIDES,
) -> None:
    """Search settings, or compare variants, with Ray Tune and Optuna; trials share stages.

    The same name and storage again resume the sweep. --set trials=32 replaces a setting of the
    sweep.
    """
    with quick_imports():
        from qdmr_ray import api
        from qdmr_ray.report.document import REPORT_FILE
    from qdmr_ray.storage import open_location

    plan = api.load_sweep(file, overrides or (), name=name)
    endpoint = (plan.values.get("data") or {}).get("s3_endpoint")
    folder = open_location(storage, endpoint=endpoint).join(plan.settings.name)
    # The line comes before anything can fail: `qdmr jobs fetch` finds a job's folder by it.
    say(f"sweep folder {folder.uri}")
    with quick_imports():
        import qdmr_ray.sweeps.run  # noqa: F401

    with bars() as progress:
        plan = _with_demo_data(plan, file, progress)
        count = (0, 0)

        def counted(ended: int, total: int) -> None:
            nonlocal count
            count = (ended, total)
            progress("trials", ended, total)

        def located(line: str) -> None:
            ended, total = count
            progress("trials", ended, total, note=line)

        results = api.sweep(
            plan,
            storage=storage,
            retry_failed=retry_failed,
            say=say,
            progress=counted,
            status=located,
        )
    _print_results(results)
    say(f"sweep folder {folder.uri}, report {folder.join(REPORT_FILE).uri}")


def _with_demo_data(plan: Plan, file: Path, progress: Any) -> Plan:
    """Returns the plan, with data where it varies the demo's experiment, which itself names none.
    The data are made where ``qdmr demo`` makes them, unless they are there already."""
    from dataclasses import replace

    from qdmr_ray.demo import find_experiment, make_demo_data
    from qdmr_ray.sweeps.plan import experiment_file

    data = dict(plan.values.get("data") or {})
    if data.get("path") or experiment_file(file, plan.settings) != find_experiment("demo"):
        return plan
    make_demo_data(DEMO_FOLDER, progress)
    data["path"] = str((DEMO_FOLDER / "data" / "packed").resolve())
    return replace(plan, values={**plan.values, "data": data})


def _print_results(sweep: SweepFile) -> None:
    """Prints a row for each trial that matters, the spread over seeds, and the trained stages."""
    results = sweep.to_dict()
    metrics = [metric["name"] for metric in results["metrics"]]
    table = Table("trial", "state", *metrics, "test PSNR", "settings")
    test = (results["test"] or {}).get("trials", {})
    by_id = {trial["id"]: trial for trial in results["trials"]}
    # Without a search space, every trial is a variant to compare.
    wanted = [*results["front"], results["baseline"]] if results["space"] else by_id
    for name in filter(None, dict.fromkeys(wanted)):
        trial = by_id[name]
        values = trial["values"] or [None] * len(metrics)
        psnr = test.get(name, {}).get("psnr")
        settings = ", ".join(f"{key}={value}" for key, value in trial["settings"].items())
        table.add_row(
            name + (" (baseline)" if name == results["baseline"] else ""),
            trial["state"],
            *("" if value is None else f"{value:.4g}" for value in values),
            "" if psnr is None else f"{psnr:.4g}",
            trial["error"] or settings,
        )
    print_table(table)
    for repeat in results["repeats"]:
        spread = ", ".join(
            f"{metric} {mean:.4g} ± {std:.2g}"
            for metric, mean, std in zip(metrics, repeat["mean"], repeat["std"], strict=True)
            if mean is not None and std is not None
        )
        say(f"trial {repeat['of']} over {len(repeat['seeds'])} seeds: {spread}")
    trained = ", ".join(f"{count} {stage}" for stage, count in results["stages_trained"].items())
    say(f"{len(results['trials'])} trials in {results['seconds']:.0f} s; trained: {trained}")
