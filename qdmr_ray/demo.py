"""The demo: photographs become a trained, judged and reported restorer in one call.

qdmr demo --out runs/demo
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qdmr_ray.config import Experiment, load_experiment
from qdmr_ray.data.demo import build_demo_data
from qdmr_ray.data.format.manifest import MANIFEST_NAME
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.errors import QdmrError

if TYPE_CHECKING:
    from qdmr_ray.evaluate.results import Evaluation

# Called with a step's name, the number of finished items and the number of all.
Progress = Callable[[str, int, int], None]


def find_experiment(name: str) -> Path:
    """Returns the file of a shipped experiment, from the package or from a checkout beside it;
    raises QdmrError if there is none of that name."""
    package = Path(__file__).resolve().parent
    places = [folder / "experiments" / f"{name}.yaml" for folder in (package, package.parent)]
    for place in places:
        if place.is_file():
            return place
    raise QdmrError(f"{places[0]}: no shipped experiment {name}; install qdmr_ray again")


def demo_experiment(out: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Returns the demo's experiment, on the data of :func:`make_demo_data` below ``out``."""
    experiment = load_experiment(find_experiment("demo"), overrides, name=out.name)
    path = experiment.data.path or str(out / "data" / "packed")
    return replace(experiment, data=replace(experiment.data, path=path))


def make_demo_data(out: Path, progress: Progress) -> None:
    """Simulates and packs the demo's photographs below ``out``, unless they are there already.
    Raises QdmrError if ``out`` can't be written to, or the photographs' packages are incomplete."""
    packed = out / "data" / "packed"
    if (packed / MANIFEST_NAME).is_file():
        return
    realab = build_demo_data(out / "data" / "realab", progress=partial(progress, "simulate"))
    pack(realab, str(packed), settings=PackSettings(), progress=partial(progress, "pack"))


def run_demo(
    out: Path, *, overrides: Sequence[str] = (), say: Callable[[str], None], progress: Progress
) -> Evaluation:
    """Builds the data, trains the stages, evaluates and reports into ``out``; returns the
    evaluation. A second call for the same folder continues where the first one stopped. The first
    step that fails raises a QdmrError."""
    # Ray is imported after the settings are checked: it is slow to import.
    experiment = demo_experiment(out, overrides)
    from qdmr_ray.evaluate.evaluate import evaluate_run
    from qdmr_ray.report import build_report
    from qdmr_ray.train.run import train_run

    say(f"data: photographs of scikit-image and scikit-learn through two lenses, in {out / 'data'}")
    make_demo_data(out, progress)
    run = train_run(experiment, storage=str(out.parent), say=say)
    evaluation = evaluate_run(
        run, progress=partial(progress, "evaluate"), codebook_progress=partial(progress, "codebook")
    )
    say(f"report: {build_report(out)}")
    return evaluation
