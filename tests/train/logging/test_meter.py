"""The loop's clocks, on a device that works beside the host: a step takes 1 ms to launch and 50 ms
to run."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_device import Queue
from tiny_training import metrics_of, settings
from torch.utils._python_dispatch import TorchDispatchMode

from qdmr_ray.config import GuardSettings, experiment_from_dict
from qdmr_ray.data.format.manifest import MANIFEST_NAME
from qdmr_ray.models.documents import Begun
from qdmr_ray.models.layout import BEGUN_FILE
from qdmr_ray.storage import open_location
from qdmr_ray.train import loop
from qdmr_ray.train.divergence import Guard
from qdmr_ray.train.logging import prometheus
from qdmr_ray.train.logging.clocks import HostClock
from qdmr_ray.train.logging.meter import Meter
from qdmr_ray.train.worker_context import Host

STAGE, BATCH, CROP = "source_only", 4, 16
LAUNCH, RUN, SAVING = 0.001, 0.050, 1.5


class NoGauge:
    """Stands in for Ray's metrics, which need a running Ray."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def set(self, *_: Any) -> None: ...


class Training:
    """The loop of a worker that trains ``STAGE`` on a stand-in device. Each batch takes ``loading``
    seconds of the host, and each checkpoint ``SAVING``."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, *, loading: float, log: int, save: int = 40
    ) -> None:
        self.queue, self.folder, self.loading, self.log = Queue(), folder, loading, log
        patch.setattr(prometheus, "Gauge", NoGauge)
        patch.setattr(prometheus, "Counter", NoGauge)
        patch.setattr(loop, "batches_of", self._batches)
        values = settings(folder / "data", run=[STAGE])
        values["stages"][STAGE] |= {"iterations": 40, "batch_size": BATCH, "crop": CROP}
        values["scaling"]["workers"] = 1
        values["logging"] = {"log_interval": log, "checkpoint_interval": save}
        experiment = experiment_from_dict(values)
        (folder / "data").mkdir()
        (folder / "data" / MANIFEST_NAME).write_text("{}")
        Begun(digest="0").write(open_location(folder / "run").join(STAGE, BEGUN_FILE))
        task = loop.Task(experiment.to_dict(), STAGE, str(folder / "run"), "0", {})
        patch.setattr(loop, "clock_of", lambda device: self.queue)
        host = Host(gpu=False)
        # On a busy machine it would be time to ask Ray.
        patch.setattr(host, "is_leaving", lambda: False)
        self.worker = loop.Worker(task, host)
        patch.setattr(self.worker.stage, "_work", self._work)
        store = self.worker.saver.save

        def saved(*arguments: Any) -> bool:
            self.queue.launch(SAVING, 0.0)
            return store(*arguments)

        patch.setattr(self.worker.saver, "save", saved)

    def _batches(self, *_: Any) -> Generator[dict[str, torch.Tensor], None, None]:
        image = torch.zeros(BATCH, 3, CROP, CROP)
        while True:
            self.queue.launch(self.loading, 0.0)
            yield {"source": image, "ground_truth": image}

    def _work(self, batch: Any) -> dict[str, torch.Tensor]:
        # The first step is no measure of the others.
        slow = 100 if self.worker.stage.iteration == 1 else 1
        self.queue.launch(slow * LAUNCH, slow * RUN)
        return {"source/l1": self.queue.scalar(0.5)}

    def lines(self) -> list[dict[str, Any]]:
        """The log, without the line of the first step."""
        self.worker.run()
        return metrics_of(self.folder / "run", STAGE)[self.log == 1 :]


@pytest.mark.parametrize("log", [1, 20])
@pytest.mark.parametrize("loading", [0.003, 0.045])
def test_a_busy_device_is_logged_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: float, log: int
) -> None:
    for line in Training(tmp_path, monkeypatch, loading=loading, log=log).lines():
        # A line reads from the device, which then has nothing to do until the next step is there.
        seconds = log * RUN + loading + LAUNCH
        assert line["samples_per_second"] == pytest.approx(log * BATCH / seconds, rel=0.05)
        assert line["time/step"] == pytest.approx(RUN + LAUNCH / log, rel=0.05)
        assert line["data_wait_fraction"] == pytest.approx(loading / seconds, rel=0.06, abs=0.002)


def test_a_device_without_data_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = 0.150
    for line in Training(tmp_path, monkeypatch, loading=loading, log=20).lines():
        seconds = loading + LAUNCH
        assert line["samples_per_second"] == pytest.approx(BATCH / seconds, rel=0.05)
        # The device has work for the first 50 of the 150 ms.
        assert line["data_wait_fraction"] == pytest.approx((loading - RUN) / seconds, rel=0.05)
        assert line["time/data_wait"] == pytest.approx(loading - RUN, rel=0.05)
        assert line["time/step"] == pytest.approx(RUN + LAUNCH, rel=0.05)


def test_what_is_no_step_takes_from_the_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, line = Training(tmp_path, monkeypatch, loading=0.003, log=20, save=10).lines()
    # Two checkpoints are saved in these 20 iterations.
    seconds = RUN + 2 * SAVING / 20
    assert line["samples_per_second"] == pytest.approx(BATCH / seconds, rel=0.05)
    assert line["time/checkpoint"] == pytest.approx(2 * SAVING / 20, rel=0.05)
    phases = sum(value for name, value in line.items() if name.startswith("time/"))
    assert phases == pytest.approx(seconds, rel=0.05)


def test_utilization_is_the_pace_over_that_at_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "pace_at_peak", lambda *_: 100.0)
    for line in Training(tmp_path, monkeypatch, loading=0.003, log=20).lines():
        pace = BATCH / (RUN + 0.004 / 20)
        assert line["model_flops_utilization"] == pytest.approx(pace / 100.0, rel=0.05)


def test_seconds_are_those_of_the_iterations_that_were_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter(torch.device("cpu"), HostClock(), samples=8)

    def iteration(seconds: float, loss: float, broken: int = 0) -> None:
        with meter.device_phase("step"):
            now[0] += seconds
        meter.add(("source/l1",), torch.tensor([loss]), broken)

    iteration(50.0, 1.0, broken=2)
    meter.restart()
    for _ in range(9):
        iteration(2.0, 0.0)
    assert meter.take() == {
        "source/l1": 0.1,
        "time/step": 2.0,
        "data_wait_fraction": 0.0,
        "samples_per_second": 4.0,
        "broken_records": 2,
    }
    iteration(3.0, 0.5)
    assert meter.take() == {
        "source/l1": 0.5,
        "time/step": 3.0,
        "data_wait_fraction": 0.0,
        "samples_per_second": pytest.approx(8 / 3),
        "broken_records": 0,
    }


def test_means_of_what_not_every_iteration_logs_are_over_all_of_them() -> None:
    meter = Meter(torch.device("cpu"), HostClock(), samples=8)
    meter.add(("source/l1",), torch.tensor([1.0]))
    meter.add(("source/l1", "codebook/revived"), torch.tensor([3.0, 6.0]))
    meter.add(("source/l1", "codebook/revived"), torch.tensor([2.0, 0.0]))
    means = meter.take()
    assert (means["source/l1"], means["codebook/revived"]) == (2.0, 2.0)


@pytest.mark.parametrize("count", [3, 40])
def test_what_watches_a_step_takes_few_operations_however_much_is_logged(count: int) -> None:
    guard = Guard(GuardSettings(), STAGE)
    meter = Meter(torch.device("cpu"), HostClock(), samples=8)
    names = tuple(f"term {i}" for i in range(count))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            taken.append(str(call))
            return call(*args, **kwargs or {})

    for iteration in (1, 2):
        taken: list[str] = []
        logged = dict.fromkeys(names, torch.ones(()))
        with Operations():
            values = torch.stack(list(logged.values()))
            guard.watch(names, values, iteration)
            meter.add(names, values)
    assert len(taken) <= 6, taken
    assert guard.check() == []
    assert meter.take()["term 2"] == 1.0
