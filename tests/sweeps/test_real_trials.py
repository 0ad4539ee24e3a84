"""Sweeps of real trials on a Ray of the test's own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from sweeping import SCALING, run, trained_iterations, trials_of, wait_until_nothing_is_left

from qdmr_ray.config import load_experiment
from qdmr_ray.errors import QdmrError
from qdmr_ray.sweeps.plan import Plan, load_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
Plans = Callable[..., Plan]


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
    # Metrics of a trial are those of its log, and its curve has every validation.
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
    boards = list((tmp_path / "sweep/tensorboard").glob("*/events*"))
    assert {file.parent.name for file in boards} == set(trials)
    assert all(b"_hparams_/session_start_info" in file.read_bytes() for file in boards)
    wait_until_nothing_is_left()

    # Run again, it is done: nothing is trained, nothing changes.
    before = {f: f.stat().st_mtime for f in (tmp_path / "sweep/stages").rglob("model.safetensors")}
    again = run(plan, tmp_path)
    assert {f: f.stat().st_mtime for f in before} == before
    when = {"seconds": 0, "updated": 0}
    assert {**again, **when} == {**results, **when}
    with pytest.raises(QdmrError, match="sweep seed was 0, now 9"):
        run(load_sweep(tmp_path / "sweep.yaml", ["seed=9"]), tmp_path)


@pytest.mark.long
def test_a_stopped_trial_of_two_workers_frees_them(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    plan = plan_of(
        trials=2,
        space={"stages.uda.optimizer.generator_lr": {"choice": [1e-4, 1.0]}},
        first=[{"stages.uda.optimizer.generator_lr": 1.0}],
        stopping={"rule": "asha", "grace": 4, "reduction": 4},
        concurrent=1,
        sections={"scaling": {**SCALING, "workers": 2, "cpus_per_worker": 0.25}},
    )
    trials = trials_of(run(plan, tmp_path))
    assert trials["0000"]["state"] == "finished"
    assert trials["0000"]["trained"] == ["vqgan", "uda"]
    assert trials["0001"]["state"] == "stopped"
    assert trials["0001"]["iterations"] < 12
    wait_until_nothing_is_left()


def test_a_metric_that_is_never_logged_ends_the_sweep_and_is_named(
    cluster: None, plan_of: Plans, tmp_path: Path
) -> None:
    plan = plan_of(
        metric="source_only/source/l2",
        trials=9,
        space={"stages.source_only.gan": {"float": [0.001, 0.1], "log": True}},
        sections={"run": ["source_only"]},
    )
    with pytest.raises(
        QdmrError, match="metric source_only/source/l2: stage source_only logs no source/l2; take"
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


@pytest.mark.long
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
            run(plan_of(trials=2, failures=1), disk)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        results = run(plan_of(trials=2), disk, retry_failed=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert {trial["state"] for trial in results["trials"]} == {"finished"}
