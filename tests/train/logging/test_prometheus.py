"""Metrics for Prometheus: what becomes of figures that are not finite, and of states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from tiny_training import settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.models.documents import Begun
from qdmr_ray.models.layout import BEGUN_FILE
from qdmr_ray.storage import open_location
from qdmr_ray.train import loop
from qdmr_ray.train.failures import EndAtOnce
from qdmr_ray.train.logging import prometheus as gauges
from qdmr_ray.train.preemption import Preempted, Stopped
from qdmr_ray.train.worker_context import Host


class Fake:
    """Stands in for Ray's metrics, which nobody can read back."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tag_keys = name, tag_keys
        self.values: dict[tuple[str, ...], float] = {}
        made[name] = self

    def _key(self, tags: dict[str, str]) -> tuple[str, ...]:
        assert set(tags) == set(self.tag_keys)
        return tuple(tags[key] for key in self.tag_keys)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[self._key(tags)] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        key = self._key(tags)
        self.values[key] = self.values.get(key, 0) + value


made: dict[str, Fake] = {}


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    for name in ("Gauge", "Counter"):
        monkeypatch.setattr(gauges, name, Fake)


def test_a_figure_that_is_not_finite_is_counted_and_its_gauge_stays() -> None:
    stage = gauges.Gauges("demo", "uda")
    figures: dict[str, Any] = {"source/l1": 0.5, "validation/psnr": 27.0}
    stage.set(10, figures)
    stage.set(20, {"source/l1": math.nan, "validation/psnr": math.inf})
    stage.set(30, {"source/l1": math.nan})
    assert made["qdmr_loss"].values == {("demo", "uda", "source/l1"): 0.5}
    assert made["qdmr_validation"].values == {("demo", "uda", "psnr"): 27.0}
    assert made["qdmr_iteration"].values == {("demo", "uda", ""): 30.0}
    assert made["qdmr_non_finite"].values == {
        ("demo", "uda", "source/l1"): 2,
        ("demo", "uda", "psnr"): 1,
    }


def test_preemptions_are_counted() -> None:
    counter = gauges.PreemptionCounter("demo", "uda")
    counter.add()
    counter.add()
    assert made["qdmr_preemptions"].values == {("demo", "uda"): 2}


def test_preemptions_are_counted_where_they_outlive_the_worker() -> None:
    ends = EndAtOnce("demo", "uda")
    ends.after_exception(None, {0: Preempted("stopped"), 1: RuntimeError("its peer is gone")})
    ends.after_exception(None, {1: RayActorError(error_msg="killed")})
    # Ctrl-C and resizes are no machines that are taken away.
    ends.after_exception(None, {0: Stopped("stopped"), 1: RuntimeError("its peer is gone")})
    ends.after_exception(None, {0: Preempted("stopped")})
    assert made["qdmr_preemptions"].values == {("demo", "uda"): 2}


def test_a_figure_that_ends_the_training_is_counted() -> None:
    stage = gauges.Gauges("demo", "uda")
    stage.not_finite("source/gan")
    assert made["qdmr_non_finite"].values == {("demo", "uda", "source/gan"): 1}


def test_a_state_that_is_empty_again_shows_zero() -> None:
    trials = gauges.TrialGauge("sweep")
    trials.set({"running": 2})
    trials.set({"finished": 1, "running": 1})
    trials.set({"finished": 2})
    assert made["qdmr_trials"].values == {("sweep", "running"): 0, ("sweep", "finished"): 2}


@pytest.mark.parametrize(("label", "run"), [(None, "lens"), ("codes/0003", "codes/0003")])
def test_a_worker_shows_its_run_by_the_label_that_it_is_given(
    tiny_dataset: Path, tmp_path: Path, label: str | None, run: str
) -> None:
    experiment = experiment_from_dict(
        {**settings(tiny_dataset, run=["source_only"]), "name": "lens"}
    )
    place = open_location(tmp_path / "run")
    Begun(digest="0").write(place.join("source_only", BEGUN_FILE))
    task = loop.Task(experiment.to_dict(), "source_only", place.uri, "0", {}, label=label)
    worker = loop.Worker(task, Host(gpu=False))
    worker.logbook.open(worker.run_location, 3)
    assert made["qdmr_iteration"].values == {(run, "source_only", ""): 3.0}
