"""A sweep whose folder and stages lie in a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from local_ray import local_ray

from qdmr_ray.report import build_report
from qdmr_ray.storage import open_location
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.run import sweep_run


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_sweep_may_live_in_a_store_and_goes_on_there(
    s3_endpoint: str, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    sweep = open_location("s3://lens/sweeps/sweep")
    options = {"concurrent": 1, "first": [{"network.codebook_size": 16}]}
    with local_ray():
        first = sweep_run(
            plan_of(trials=2, **options), storage="s3://lens/sweeps", say=lambda _: None
        ).to_dict()
        results = sweep_run(
            plan_of(trials=3, **options), storage="s3://lens/sweeps", say=lambda _: None
        ).to_dict()
    assert results["trials"][:2] == first["trials"]
    assert [trial["state"] for trial in results["trials"]] == ["finished"] * 3
    assert json.loads(sweep.join("sweep.json").read_bytes())["best"] == results["best"]
    assert (
        len({trial["stages"]["vqgan"] for trial in results["trials"]})
        == (results["stages_trained"]["vqgan"])
    )
    # Optuna opens a copy of the study.
    (tmp_path / "study.db").write_bytes(sweep.join("study.db").read_bytes())
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(study.trials) == 3
    build_report(sweep.uri)
    assert b"<html" in sweep.join("report.html").read_bytes()[:300]
