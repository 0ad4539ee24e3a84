"""Sweeps on a Ray of the test's own, with stand-ins for the training of a trial."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sweeping import SCALING, run, trials_of, wait_until_nothing_is_left

from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.trial import Tell, TrialContext, TrialReport

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
Plans = Callable[..., Plan]


def learning_curve(settings: Mapping[str, Any], iteration: int) -> float:
    """Rises towards a height that is best at gan = 0.02 and feature_gan = 0.005; the better trials
    are ahead from the start, if not by as much."""
    gan, feature = settings["stages.uda.gan"], settings["stages.uda.feature_gan"]
    off = abs(math.log10(gan / 0.02)) + abs(math.log10(feature / 0.005))
    return (32 - 4 * off) * (1 - math.exp(-iteration / 9))


def quick_trial(config: Mapping[str, Any], context: TrialContext, tell: Tell) -> TrialReport:
    """Twenty-seven iterations of a learning curve."""

    def at(iteration: int) -> TrialReport:
        return TrialReport(
            iteration=iteration,
            values=[learning_curve(config["settings"], iteration)],
            progress={"uda": iteration},
            stages={"uda": config["id"]},
            is_last=iteration == 27,
        )

    for iteration in (3, 9):
        tell(at(iteration))
    return at(27)


def flaky_trial(config: Mapping[str, Any], context: TrialContext, tell: Tell) -> TrialReport:
    number = int(config["id"])
    if number == 1:
        error = "stage uda failed: loss source/l1 is nan in iteration 7"
        return TrialReport(is_last=True, error=error)
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise RuntimeError("a bug of this trial")
    return TrialReport(iteration=12, values=[20.0 + number], is_last=True)


CURVES = {
    "stages.uda.gan": {"float": [1e-4, 1.0], "log": True},
    "stages.uda.feature_gan": {"float": [1e-4, 1.0], "log": True},
}


def test_a_sweep_that_goes_on_stops_trials_by_those_of_before(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    best = {"stages.uda.gan": 0.02, "stages.uda.feature_gan": 0.005}
    # Each is worse than all before it.
    worse = [best | {"stages.uda.gan": gan} for gan in (0.05, 0.1, 0.2, 0.4, 0.8)]
    options = {
        "space": CURVES,
        "concurrent": 1,
        "baseline": False,
        "stopping": {"rule": "asha", "grace": 3, "reduction": 3},
        "first": [best, *worse],
        "sections": {"scaling": SCALING},
    }
    earlier = trials_of(run(plan_of(trials=4, **options), tmp_path, body=quick_trial))
    assert earlier["0000"]["state"] == "finished"
    assert earlier["0003"]["state"] == "stopped"
    # The scheduler is a new one, which knows only what the records of trials tell it.
    later = trials_of(run(plan_of(trials=6, **options), tmp_path, body=quick_trial))
    assert {name: later[name] for name in earlier} == earlier
    assert later["0004"]["state"] == later["0005"]["state"] == "stopped"
    assert later["0004"]["history"][-1]["iteration"] == 3
    wait_until_nothing_is_left()


def test_others_go_on_beside_a_trial_that_crashes(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    results = run(plan_of(trials=5, concurrent=1, failures=4), tmp_path, body=flaky_trial)
    trials = trials_of(results)
    states = [trials[name]["state"] for name in sorted(trials)]
    assert states == ["finished", "failed", "failed", "failed", "finished"]
    assert "is nan in iteration 7" in trials["0001"]["error"]
    assert "process was lost" in trials["0002"]["error"]
    assert "a bug of this trial" in trials["0003"]["error"]
    assert results["best"] == "0004"
    saved = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert trials_of(saved)["0001"]["error"] == trials["0001"]["error"]
