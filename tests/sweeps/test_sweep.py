"""Sweeps on a Ray of the test's own, with stand-ins for trials: samplers, rules, crashes."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sweeping import SCALING, run, trials_of, wait_until_nothing_is_left

from qdmr_ray.cli.main import main
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.trial import ITERATION, NEWS, VALUE, Report, Tell, TrialContext

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
Plans = Callable[..., Plan]


def report(iteration: int, value: float, **more: Any) -> Report:
    news = {
        "progress": {"uda": iteration},
        "stages": {"uda": "one"},
        "trained": ["uda"],
        "metrics": {"uda/validation/psnr": value},
        "iteration": iteration,
        "values": [value],
        **more,
    }
    return {ITERATION: iteration, VALUE: value, NEWS: json.dumps(news)}


def learning_curve(settings: Mapping[str, Any], iteration: int) -> float:
    """Rises towards a height that is best at gan = 0.02 and feature_gan = 0.005; the better trials
    are ahead from the start, if not by as much."""
    gan, feature = settings["stages.uda.gan"], settings["stages.uda.feature_gan"]
    off = abs(math.log10(gan / 0.02)) + abs(math.log10(feature / 0.005))
    return (32 - 4 * off) * (1 - math.exp(-iteration / 9))


def quick_trial(config: Mapping[str, Any], context: TrialContext, tell: Tell) -> Report:
    """Twenty-seven iterations of a learning curve."""

    def at(iteration: int, **more: Any) -> Report:
        value = learning_curve(config["settings"], iteration)
        return report(iteration, value, stages={"uda": config["id"]}, **more)

    for iteration in (3, 9):
        tell(at(iteration))
    return at(27, error=None)


def flaky_trial(config: Mapping[str, Any], context: TrialContext, tell: Tell) -> Report:
    number = int(config["id"])
    if number == 1:
        return report(12, 0.0, error="stage uda failed: loss source/l1 is nan in iteration 7")
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise RuntimeError("a bug of this trial")
    return report(12, 20.0 + number, error=None)


# Wide enough for random search to miss the best for a while.
CURVES = {
    "stages.uda.gan": {"float": [1e-4, 1.0], "log": True},
    "stages.uda.feature_gan": {"float": [1e-4, 1.0], "log": True},
}
# In trials that are trained to their end.
BUDGET = 6
ASHA = {"rule": "asha", "grace": 3, "reduction": 3}


def test_asha_finds_at_equal_budget_at_least_what_random_search_finds(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    found: dict[str, list[float]] = {"random": [], "asha": []}
    begun: dict[str, list[int]] = {"random": [], "asha": []}
    for seed in range(5):
        for name, changes in (("random", {}), ("asha", {"stopping": ASHA})):
            plan = plan_of(
                name=f"{name}{seed}",
                space=CURVES,
                sampler="random",
                trials=None,
                iterations=27 * BUDGET,
                seed=seed,
                baseline=False,
                concurrent=2,
                sections={"scaling": SCALING},
                **changes,
            )
            results = run(plan, tmp_path, body=quick_trial)
            best = trials_of(results)[results["best"]]
            found[name].append(best["values"][0])
            begun[name].append(len(results["trials"]))
            spent = sum(trial["iterations"] for trial in results["trials"])
            # The trials that were under way when the budget was spent go on.
            assert 27 * BUDGET <= spent <= 27 * (BUDGET + 2)
    assert sum(found["asha"]) >= sum(found["random"])
    assert min(begun["asha"]) > max(begun["random"])
    wait_until_nothing_is_left()


@pytest.mark.parametrize(
    "stopping", [ASHA, {"rule": "median", "grace": 3, "least_trials": 3}], ids=["asha", "median"]
)
def test_a_sweep_that_goes_on_stops_trials_by_those_of_before(
    cluster: None, plan_of: Plans, tmp_path: Path, stopping: dict[str, Any]
) -> None:
    best = {"stages.uda.gan": 0.02, "stages.uda.feature_gan": 0.005}
    # Each is worse than all before it.
    worse = [best | {"stages.uda.gan": gan} for gan in (0.05, 0.1, 0.2, 0.4, 0.8)]
    options = {"space": CURVES, "concurrent": 1, "baseline": False, "stopping": stopping}
    options |= {"first": [best, *worse], "sections": {"scaling": SCALING}}
    earlier = trials_of(run(plan_of(trials=4, **options), tmp_path, body=quick_trial))
    assert earlier["0000"]["state"] == "finished"
    assert earlier["0003"]["state"] == "stopped"
    # The scheduler is a new one, which knows only what the books have told it.
    later = trials_of(run(plan_of(trials=6, **options), tmp_path, body=quick_trial))
    assert {name: later[name] for name in earlier} == earlier
    assert later["0004"]["state"] == later["0005"]["state"] == "stopped"
    assert later["0004"]["history"][-1]["iteration"] == 3


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


def test_a_wrong_sweep_is_one_line_and_exit_code_2(
    write_sweep: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_sweep(space={"stages.uda.gann": {"choice": [1]}})
    monkeypatch.setattr(sys, "argv", ["qdmr", "sweep", str(file), "--storage", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        said
        == f"qdmr: {file}: space: unknown setting stages.uda.gann; did you mean stages.uda.gan?"
    )
    assert not (tmp_path / "r").exists()
