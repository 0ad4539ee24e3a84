"""Another number of workers: when they are asked to leave, how they do it, and what follows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from tiny_training import metrics_of, settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.models.documents import Begun
from qdmr_ray.models.layout import BEGUN_FILE
from qdmr_ray.ray_compat import ElasticScalingPolicy
from qdmr_ray.storage import open_location
from qdmr_ray.train import loop, resizing
from qdmr_ray.train.checkpoints import CheckpointStore
from qdmr_ray.train.logging import prometheus
from qdmr_ray.train.logging.board import Board
from qdmr_ray.train.logging.logbook import Logbook
from qdmr_ray.train.preemption import Stopped
from qdmr_ray.train.resizing import SavedResizes
from qdmr_ray.train.worker_context import Host

STAGE = "source_only"


class Asked:
    """A board that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda: self.told.append(name))


class Decisions:
    """Ray Train's policy, which decides as scripted, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *decisions: Any) -> None:
        self.now, self.board, script = 0.0, Asked(), iter(decisions)
        for state in ("running", "non_running"):
            monkeypatch.setattr(
                ElasticScalingPolicy,
                f"make_decision_for_{state}_worker_group",
                lambda *_, **__: next(script),
            )
        monkeypatch.setattr(resizing.time, "monotonic", lambda: self.now)
        config = ray.train.ScalingConfig(num_workers=(1, 2))
        self.policy = SavedResizes(config, self.board, patience=100.0)

    def while_running(self) -> Any:
        return self.policy.make_decision_for_running_worker_group(
            worker_group_state=None, worker_group_status=None
        )

    def before_a_start(self) -> Any:
        return self.policy.make_decision_for_non_running_worker_group()


NOTHING = NoopDecision()
ONE, TWO = (ResizeDecision(n, {"CPU": 1}) for n in (1, 2))


def test_workers_that_stay_as_many_hear_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_train = Decisions(monkeypatch, ONE, NOTHING, NOTHING)
    assert ray_train.before_a_start() == ONE
    assert ray_train.while_running() == ray_train.while_running() == NOTHING
    assert ray_train.board.told == []


def test_workers_are_asked_once_and_others_start_when_they_have_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray_train = Decisions(monkeypatch, TWO, NOTHING, TWO, NOTHING, ONE, NOTHING)
    for _ in range(3):
        assert ray_train.while_running() == NOTHING
    assert ray_train.board.told == ["resize"]
    # There is no room yet for those that follow, and then for fewer.
    assert ray_train.before_a_start() == NOTHING
    assert ray_train.before_a_start() == ONE
    assert ray_train.board.told == ["resize", "resized"]
    ray_train.now = 1000.0
    assert ray_train.while_running() == NOTHING


def test_workers_that_do_not_leave_are_ended_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_train = Decisions(monkeypatch, TWO, NOTHING, NOTHING, NOTHING, TWO)
    assert ray_train.while_running() == NOTHING
    ray_train.now = 99.0
    assert ray_train.while_running() == NOTHING
    ray_train.now = 100.0
    assert ray_train.while_running() == TWO
    # Those that follow must not leave, too; and they have their own time later.
    assert ray_train.board.told == ["resize", "resized"]
    assert ray_train.while_running() == NOTHING
    assert ray_train.while_running() == NOTHING
    assert ray_train.board.told == ["resize", "resized", "resize"]


def test_the_board_asks_until_other_workers_start() -> None:
    board = Board.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    assert board.post(3, {}) is False
    board.resize()
    assert board.post(4, {}) is True
    board.resized()
    assert board.post(5, {}) is False
    # Ctrl-C meanwhile stays in force.
    board.resize()
    board.stop()
    board.resized()
    assert board.post(6, {}) is True


def asked_worker(data: Path, folder: Path, patch: pytest.MonkeyPatch, iterations: int) -> Any:
    """A worker that the board asks to leave from its first iteration on."""
    values = settings(data, run=[STAGE])
    values["stages"][STAGE] |= {"iterations": iterations}
    values["scaling"]["workers"] = 1
    values["logging"]["checkpoint_interval"] = 100
    Begun(digest="0").write(open_location(folder / "run").join(STAGE, BEGUN_FILE))
    for kind in ("Gauge", "Counter"):
        # Ray's metrics need a running Ray.
        patch.setattr(prometheus, kind, lambda *_, **__: SimpleNamespace(set=lambda *_: None))
    patch.setattr(Logbook, "asked_to_stop", lambda _: True)
    experiment = experiment_from_dict(values)
    task = loop.Task(experiment.to_dict(), STAGE, str(folder / "run"), "0", {})
    return loop.Worker(task, Host(gpu=False))


def test_a_worker_leaves_at_a_checkpoint(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = asked_worker(tiny_dataset, tmp_path, monkeypatch, iterations=3)
    # A resize is no machine that is taken away, and not counted as one.
    with pytest.raises(Stopped, match="stopped after iteration 1, as Ctrl-C or a resize asked"):
        worker.run()
    saved = CheckpointStore(open_location(tmp_path / "run" / STAGE / "checkpoints"))
    assert saved.newest_iteration() == 1


def test_a_worker_that_has_just_ended_leaves_its_result(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_worker(tiny_dataset, tmp_path, monkeypatch, iterations=1).run()
    assert (tmp_path / "run" / STAGE / "final" / "model.safetensors").exists()
    assert [line["iteration"] for line in metrics_of(tmp_path / "run", STAGE)] == [1]
