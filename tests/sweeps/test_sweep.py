"""Sweeps on a Ray of the test's own: real trials, and stand-ins where only the wiring matters."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from local_ray import local_ray
from ray.util import placement_group_table

from qdmr_ray.claims import process_here
from qdmr_ray.cli import main
from qdmr_ray.config import load_experiment
from qdmr_ray.errors import QdmrError
from qdmr_ray.sweeps.plan import Plan, load_sweep
from qdmr_ray.sweeps.run import sweep_run
from qdmr_ray.sweeps.trial import ITERATION, NEWS, VALUE, Report, Tell, TrialContext

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
Plans = Callable[..., Plan]
SCALING = {"cpus_per_worker": 0.5, "threads": 1, "max_failures": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # Ray's workers can't import the tests, so the stand-ins below travel to them.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with local_ray():
            yield


def run(plan: Plan, folder: Path, **options: Any) -> dict[str, Any]:
    return sweep_run(plan, storage=str(folder), say=lambda _: None, **options)


def trials_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {trial["id"]: trial for trial in results["trials"]}


# Ray Data keeps them as long as Ray runs.
RAYS_OWN = ("_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker")


def left_behind() -> list[str]:
    """Actors and placement groups that are still there; the driver's own are none."""
    alive = [
        actor["ActorClassName"]
        for actor in ray._private.state.actors().values()
        if actor["State"] not in ("DEAD",) and actor["ActorClassName"] not in RAYS_OWN
    ]
    groups = [g["name"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return alive + groups


def wait_until_nothing_is_left(seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while (rest := left_behind()) and time.monotonic() < end:
        time.sleep(0.5)
    assert rest == []


# -- stand-ins -------------------------------------------------------------------------------


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


# -- real trials -----------------------------------------------------------------------------


def trained_iterations(sweep: Path, stage: str) -> list[int]:
    """Iterations of every folder in which a stage was ever begun."""
    lines = [
        (f / "metrics.jsonl").read_text().splitlines()
        for f in sweep.glob(f"stages/{stage}-*/{stage}")
    ]
    return [json.loads(rows[-1])["iteration"] for rows in lines]


def test_a_sweep_trains_one_vqgan_for_each_codebook_and_leaves_its_results(
    cluster: None, write_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load_sweep(write_sweep(trials=5, first=[{"network.codebook_size": 32}], repeat=2))
    results = run(plan, tmp_path)
    trials = trials_of(results)
    assert {trial["state"] for trial in trials.values()} == {"finished"}
    # Two codebooks, and another seed of the best and of the baseline.
    seeds = {(t["settings"]["network.codebook_size"], t["seed"]) for t in trials.values()}
    assert results["stages_trained"] == {"vqgan": len(seeds), "uda": len(trials)}
    assert trained_iterations(tmp_path / "sweep", "vqgan") == [12] * len(seeds)
    digests = {name: trial["stages"]["vqgan"] for name, trial in trials.items()}
    assert len(set(digests.values())) == len(seeds)
    # Figures of a trial are those of its log, and its curve has every validation.
    last = (tmp_path / "sweep/trials/0003/uda/metrics.jsonl").read_text().splitlines()[-1]
    assert trials["0003"]["values"] == [json.loads(last)["validation/psnr"]]
    assert [line["iteration"] for line in trials["0003"]["history"]] == [4, 8, 12]

    best = results["best"]
    (repeat, *_), base = results["repeats"], results["baseline"]
    assert set(results["test"]["trials"]) >= {best, base, f"{best}-s1"}
    assert results["test"]["images"] == 3
    assert repeat["seeds"] == [0, 1]
    assert set(repeat["trials"]) <= set(trials)

    experiment = load_experiment(tmp_path / "sweep" / "best.yaml")
    assert experiment.stages.uda.gan == trials[best]["settings"]["stages.uda.gan"]
    study = optuna.load_study(
        study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}"
    )
    assert study.best_value == trials[best]["values"][0]
    assert len(study.trials) == 5
    boards = {file.parent.name for file in (tmp_path / "sweep/tensorboard").glob("*/events*")}
    assert boards == set(trials)
    wait_until_nothing_is_left()

    # Run again, it is done: nothing is trained, nothing changes.
    before = {f: f.stat().st_mtime for f in (tmp_path / "sweep/stages").rglob("model.safetensors")}
    again = run(plan, tmp_path)
    assert {f: f.stat().st_mtime for f in before} == before
    assert {**again, "seconds": 0} == {**results, "seconds": 0}
    with pytest.raises(QdmrError, match="sweep seed was 0, now 9"):
        run(load_sweep(tmp_path / "sweep.yaml", ["seed=9"]), tmp_path)


def test_a_stopped_trial_of_two_workers_frees_them(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    plan = plan_of(
        trials=3,
        space={"stages.uda.optimizer.generator_lr": {"choice": [1e-4, 0.5, 1.0]}},
        first=[
            {"stages.uda.optimizer.generator_lr": 0.5},
            {"stages.uda.optimizer.generator_lr": 1.0},
        ],
        stopping={"rule": "asha", "grace": 4, "reduction": 4},
        concurrent=1,
        sections={"scaling": {**SCALING, "workers": 2, "cpus_per_worker": 0.25}},
    )
    trials = trials_of(run(plan, tmp_path))
    assert trials["0000"]["state"] == "finished"
    assert trials["0000"]["trained"] == ["vqgan", "uda"]
    assert {trials[name]["state"] for name in ("0001", "0002")} == {"stopped"}
    assert trials["0002"]["iterations"] < 12
    wait_until_nothing_is_left()


def test_a_metric_that_is_never_logged_ends_the_sweep_and_is_named(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    plan = plan_of(metric="uda/source/l2", trials=9)
    with pytest.raises(
        QdmrError, match="metric uda/source/l2: stage uda logs no source/l2; take"
    ) as raised:
        run(plan, tmp_path)
    assert "source/l1" in str(raised.value)
    assert len(list((tmp_path / "sweep" / "trials").iterdir())) <= 3
    wait_until_nothing_is_left()


def test_variants_are_compared(cluster: None, plan_of: Plans, tmp_path: Path) -> None:
    variants = {
        "source-only": {"run": ["source_only"]},
        "base": {"run": ["vqgan", "base"]},
        "no-s2t": {"stages.uda.s2t": False},
    }
    plan = plan_of(space=None, trials=None, variants=variants, metric="last/validation/psnr")
    results = run(plan, tmp_path)
    assert [t["name"] for t in results["trials"]] == list(variants)
    assert results["stages_trained"] == {"source_only": 1, "vqgan": 1, "base": 1, "uda": 1}
    assert set(results["test"]["trials"]) >= {results["best"]}
    assert all(trial["values"][0] > 0 for trial in results["trials"])


def sweep_process(file: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qdmr_ray.cli", "sweep", str(file), "--storage", str(folder)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def descendants(pid: int) -> list[dict[str, Any]]:
    """A process and all that it has started, so that each can be told from later ones."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return [process for process in map(process_here, found) if process is not None]


def alive(processes: list[dict[str, Any]]) -> list[int]:
    return [p["pid"] for p in processes if process_here(p["pid"]) == p]


def test_killed_three_times_a_sweep_has_every_trial_once(
    write_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = write_sweep(trials=6, stopping={"grace": 4, "reduction": 3}, concurrent=2)
    sweep = tmp_path / "runs" / "sweep"
    chance = random.Random(20261125)
    for kill in range(3):
        process = sweep_process(file, tmp_path / "runs")
        # Somewhere between the first trial's beginning and the end of some more.
        wanted = len(list(sweep.glob("trials/*/trial.json"))) + 1
        end = time.monotonic() + 240
        while len(list(sweep.glob("trials/*/trial.json"))) < min(wanted, 6):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2.5))
        family = descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # One that was just starting finds out that there is no Ray any more after a minute.
        end = time.monotonic() + 120
        while (rest := alive(family)) and time.monotonic() < end:
            time.sleep(0.2)
        assert rest == [], f"left after kill {kill}"
    done = sweep_process(file, tmp_path / "runs")
    said = done.communicate(timeout=300)[0]
    assert done.returncode == 0, said
    results = json.loads((sweep / "sweep.json").read_text())
    assert [trial["id"] for trial in results["trials"]] == [f"{i:04}" for i in range(6)]
    assert {trial["state"] for trial in results["trials"]} <= {"finished", "stopped"}
    settings = {json.dumps(trial["settings"], sort_keys=True) for trial in results["trials"]}
    assert len(settings) == 6
    assert trained_iterations(sweep, "vqgan") == [12] * results["stages_trained"]["vqgan"]
    assert (sweep / "report.html").stat().st_size > 10_000


def test_a_full_disk_is_named_and_the_sweep_goes_on_later(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(QdmrError, match="the disk is full"):
            run(plan_of(trials=4), disk)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        results = run(plan_of(trials=4), disk, retry_failed=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert {trial["state"] for trial in results["trials"]} == {"finished"}


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
