"""The stopping rules of a sweep that is started again, without Ray's processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from qdmr_ray.evaluate.sweep_file import Measurement, TrialRecord
from qdmr_ray.storage import open_location
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.schedulers import PastTrial, stopping_scheduler
from qdmr_ray.sweeps.trial import ITERATION, VALUE
from qdmr_ray.sweeps.trials import Trials

Plans = Callable[..., Plan]
ASHA = {"rule": "asha", "grace": 4, "reduction": 3}
MEDIAN = {"rule": "median", "grace": 4, "least_trials": 3}


def trials_with(plan: Plan, folder: Path, values: list[float], state: str) -> Trials:
    """A sweep with a trial for each value, which was measured at its first iterations."""
    sweep = open_location(folder / "sweep")
    for number, value in enumerate(values):
        TrialRecord(
            id=f"{number:04}",
            number=number,
            settings={"network.codebook_size": 16, "stages.uda.gan": 0.01},
            state=state,
            history=[
                Measurement(iteration=4, values=[value]),
                Measurement(iteration=8, values=[value]),
            ],
            values=[value],
        ).write(sweep.join("trials", f"{number:04}", "trial.json"))
    return Trials(plan, sweep, folder, lambda _: None)


def decision(scheduler: TrialScheduler, value: float) -> str:
    """What the scheduler decides on a new trial at its first validation."""
    trial: Any = PastTrial(f"new {value}", "RUNNING")
    controller: Any = SimpleNamespace(get_live_trials=list)
    scheduler.on_trial_add(controller, trial)
    return scheduler.on_trial_result(controller, trial, {ITERATION: 4, VALUE: value})


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("stopping", [ASHA, MEDIAN], ids=["asha", "median"])
def test_a_trial_is_stopped_by_those_of_earlier_starts(
    plan_of: Plans, tmp_path: Path, stopping: dict[str, Any], mode: str
) -> None:
    plan = plan_of(stopping=stopping, mode=mode)
    values = [20.0, 21.0, 22.0, 23.0]
    best, worst = (24.0, 19.0) if mode == "max" else (19.0, 24.0)
    experiment = plan.experiment({}, name="trial", seed=0)

    def restarted(state: str) -> TrialScheduler:
        return stopping_scheduler(trials_with(plan, tmp_path, values, state), experiment)

    assert decision(restarted("stopped"), worst) == TrialScheduler.STOP
    assert decision(restarted("finished"), worst) == TrialScheduler.STOP
    assert decision(restarted("finished"), best) == TrialScheduler.CONTINUE
    # Trials that are still running tell their values themselves.
    assert decision(restarted("running"), worst) == TrialScheduler.CONTINUE
