"""Workers that are killed or told to go: the run ends, in one call, with the bits of a calm one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from local_ray import local_ray
from safetensors.torch import load_file
from tiny_training import bare_loop, metrics_of, settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import QdmrError
from qdmr_ray.train import run as driver
from qdmr_ray.train.loop import Task
from qdmr_ray.train.run import train_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STAGE = "source_only"
INTERVAL = 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Ray Train looks after its workers so often; it makes these tests shorter.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
        with local_ray():
            yield


def long_run(
    data: Path,
    name: str,
    *,
    workers: int,
    iterations: int,
    gan: float = 0.01,
    checkpoint_interval: int = INTERVAL,
    **scaling: Any,
) -> Any:
    """Settings of a run that takes some seconds, a log line per iteration."""
    values = settings(data, name=name, run=[STAGE])
    values["stages"][STAGE] |= {"iterations": iterations, "gan": gan}
    values["scaling"] |= {"workers": workers, **scaling}
    values["logging"] |= {
        "checkpoint_interval": checkpoint_interval,
        "picture_interval": iterations,
    }
    return experiment_from_dict(values)


def descendants(process: int) -> list[int]:
    """Processes below ``process``."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(entry.name)] = int(fields[1])

    def is_below(child: int) -> bool:
        while child in parents:
            child = parents[child]
            if child == process:
                return True
        return False

    return sorted(child for child in parents if is_below(child))


def training_workers() -> list[int]:
    """Process ids of this test's training workers."""
    found = []
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


class Misfortune(threading.Thread):
    """Does one thing after another to a run's training workers, each when its moment has come."""

    def __init__(self, stage: Path, *blows: Callable[[Path], bool]) -> None:
        super().__init__(daemon=True)
        self.stage, self.left, self.ended = stage, list(blows), threading.Event()

    def __enter__(self) -> Misfortune:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while self.left and not self.ended.is_set():
            if self.left[0](self.stage):
                del self.left[0]
            time.sleep(0.002)


def logged(stage: Path) -> int:
    """The iteration of the last line in metrics.jsonl."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(metrics_of(stage.parent, stage.name)[-1]["iteration"])
    return 0


def checkpoints(stage: Path, *, complete: bool = True) -> list[int]:
    """Iterations of the checkpoints that are complete, or of those that are not."""
    folders = (stage / "checkpoints").glob("checkpoint_*")
    chosen = [f for f in folders if (f / "complete.json").exists() == complete]
    return sorted(int(folder.name.removeprefix("checkpoint_")) for folder in chosen)


def kill_before_the_first_checkpoint(stage: Path) -> bool:
    if not 3 <= logged(stage) < INTERVAL - 5:
        return False
    for process in training_workers()[:1]:
        os.kill(process, signal.SIGKILL)
    assert checkpoints(stage) == []
    return True


def kill_between_checkpoints(stage: Path) -> bool:
    done = checkpoints(stage)
    if not done or logged(stage) < done[-1] + 3:
        return False
    os.kill(training_workers()[-1], signal.SIGKILL)
    return True


def kill_during_a_write(stage: Path) -> bool:
    workers = training_workers()
    if not checkpoints(stage) or not checkpoints(stage, complete=False) or len(workers) != 1:
        return False
    # Held still, to see whether the moment has passed already.
    os.kill(workers[0], signal.SIGSTOP)
    time.sleep(0.05)
    writing = bool(checkpoints(stage, complete=False))
    os.kill(workers[0], signal.SIGKILL if writing else signal.SIGCONT)
    return writing


def same_weights(run: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = load_file(run / STAGE / "final" / "model.safetensors")
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def test_a_worker_may_be_killed_at_any_moment(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    experiment = long_run(tiny_dataset, "run", workers=1, iterations=160, max_failures=3)
    run = tmp_path / "run"
    blows = (kill_before_the_first_checkpoint, kill_between_checkpoints, kill_during_a_write)
    with Misfortune(run / STAGE, *blows) as misfortune:
        train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert misfortune.left == []
    *_, expected = bare_loop(experiment, STAGE, run, workers=1)
    assert same_weights(run, expected)
    assert [line["iteration"] for line in metrics_of(run, STAGE)] == list(range(1, 161))
    assert checkpoints(run / STAGE) == [140, 160]
    assert checkpoints(run / STAGE, complete=False) == []


def deadly_task(times: int, notes: Path) -> type[Task]:
    """A task that kills so many workers in the moment in which they are told to begin.

    Each leaves a file in the new folder ``notes``. It is pickled by value, as it is made in a
    function.
    """
    notes.mkdir()

    def arrived(values: dict[str, Any]) -> Task:
        # The title that Ray gives a worker; the controller reads the task, too.
        if b"RayTrainWorker" in Path("/proc/self/cmdline").read_bytes():
            for number in range(times):
                with contextlib.suppress(FileExistsError):
                    (notes / str(number)).touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
        return Task(**values)

    class Deadly(Task):
        def __reduce__(self) -> tuple[Any, ...]:
            return arrived, (vars(self),)

    return Deadly


@pytest.mark.long
def test_a_worker_may_be_killed_as_it_is_told_what_to_do(
    cluster: None, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train takes that for a failure of its own, and leaves the other worker where it is."""
    notes = tmp_path / "notes"
    monkeypatch.setattr(driver, "Task", deadly_task(1, notes))
    experiment = long_run(tiny_dataset, "run", workers=2, iterations=40, max_failures=1)
    train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert len([*notes.iterdir()]) == 1
    lines = metrics_of(tmp_path / "run", STAGE)
    assert [line["iteration"] for line in lines] == list(range(1, 41))
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


@pytest.mark.long
def test_such_a_death_counts_as_a_failure(
    cluster: None, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setattr(driver, "Task", deadly_task(2, notes))
    experiment = long_run(tiny_dataset, "run", workers=1, iterations=40, max_failures=1)
    with pytest.raises(QdmrError, match="stage source_only failed: ActorDiedError"):
        train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert len([*notes.iterdir()]) == 2


@pytest.mark.long
def test_two_workers_survive_a_kill_and_a_notice(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Rank 1 is killed; later a worker gets SIGTERM, which is not counted as a failure."""
    stopped: list[int] = []

    def give_notice(stage: Path) -> bool:
        # Well after the kill, so that the new workers are training.
        if logged(stage) < 4 * INTERVAL:
            return False
        os.kill(training_workers()[0], signal.SIGTERM)
        return True

    def note_the_checkpoint_off_schedule(stage: Path) -> bool:
        stopped.extend(i for i in checkpoints(stage) if i % interval and i < 160)
        return bool(stopped)

    # Ranks stop at a multiple of AGREE_ITERATIONS, where no checkpoint is due by the schedule.
    interval = INTERVAL + 1
    calm = long_run(tiny_dataset, "calm", workers=2, iterations=160)
    train_run(calm, storage=str(tmp_path), say=lambda _: None)
    rough = long_run(
        tiny_dataset,
        "rough",
        workers=2,
        iterations=160,
        max_failures=1,
        checkpoint_interval=interval,
    )
    run = tmp_path / "rough"
    blows = (kill_between_checkpoints, give_notice, note_the_checkpoint_off_schedule)
    with Misfortune(run / STAGE, *blows) as misfortune:
        train_run(rough, storage=str(tmp_path), say=lambda _: None)
    assert misfortune.left == []
    assert same_weights(run, load_file(tmp_path / "calm" / STAGE / "final" / "model.safetensors"))
    assert [line["iteration"] for line in metrics_of(run, STAGE)] == list(range(1, 161))
