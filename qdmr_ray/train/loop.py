"""The training loop of one worker: a stream of crops into ``stage.step``, until it is done.

It knows stages only by their interface. Every phase of an iteration is timed under a name, so that
a slow run explains itself: ``data_wait``, ``step``, ``log``, ``checkpoint``.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qdmr_ray.artifacts import KIND_OF_STAGE, load_model, save_model
from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.data.stream import CropStream
from qdmr_ray.nets import QDMR, VQGAN
from qdmr_ray.stages import STAGES, Parts, Stage, build_stage
from qdmr_ray.storage import Location, open_location
from qdmr_ray.train.journal import Journal
from qdmr_ray.train.pictures import atlas_sheet, sample_sheet
from qdmr_ray.train.prefetch import on_device
from qdmr_ray.train.progress import Reporter

STATE_FILE = "state.pt"
FINAL_FOLDER = "final"
# The end of the columns that count broken records.
SKIPPED = "_skipped"
_log = logging.getLogger(__name__)
# Iterations whose first-time costs (allocation, kernel choice) are left out of the timings.
UNTIMED_ITERATIONS = 1
# The picture that is shown as an atlas, not as a row of samples.
ATLAS = "codebook_atlas"


@dataclass(frozen=True)
class Task:
    """What the driver hands to every worker; plain values only, as they cross processes."""

    experiment: dict[str, Any]
    stage: str
    run_uri: str
    digest: str
    board: Any = None


@dataclass
class Averages:
    """Means of figures since they were last taken; tensors stay on their device until then."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """Adds one iteration's scalars."""
        for name, value in figures.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def take(self) -> dict[str, float]:
        """Means over the iterations and over all workers (a collective call), then starts anew."""
        values = torch.stack([value.double() for value in self.sums.values()]) / self.count
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
            values /= torch.distributed.get_world_size()
        means = dict(zip(self.sums, values.tolist(), strict=True))
        self.sums, self.count = {}, 0
        return means


class Clock:
    """Seconds spent per phase since they were last taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's duration under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def take(self, iterations: int) -> dict[str, float]:
        """Seconds per iteration by phase and the share of data_wait, then starts anew."""
        total = sum(self._seconds.values())
        per_iteration = {f"time/{k}": v / iterations for k, v in self._seconds.items()}
        waited = self._seconds["data_wait"] / total if total else 0.0
        self._seconds.clear()
        return per_iteration | {"data_wait_fraction": waited}


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of every Ray Train worker; ``config["task"]`` is a :class:`Task`."""
    Worker(config["task"]).run()


class Worker:
    """One rank of one stage."""

    def __init__(self, task: Task) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.task = task
        self.experiment: Experiment = experiment_from_dict(task.experiment)
        self.settings = self.experiment.stage(task.stage)
        self.run_location: Location = open_location(
            task.run_uri, endpoint=self.experiment.data.s3_endpoint
        )
        self.device = ray.train.torch.get_device()
        threads = self.experiment.scaling.threads
        local_workers = context.get_local_world_size()
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local_workers))
        self.stage = self._build_stage()
        self.reporter = Reporter(task.board if self.rank == 0 else None)
        self.journal: Journal | None = None

    def run(self) -> None:
        """Trains from the newest checkpoint to the end, and leaves the stage's result."""
        self._resume()
        if self.rank == 0:
            self.journal = Journal(self.run_location, self.task.stage, self.stage.iteration)
        if self.stage.iteration < self.settings.iterations:
            self._train()
        if self.journal is not None:
            self._save_final()
            self.journal.close()

    def _build_stage(self) -> Stage:
        # The same weights on every rank and after every restart; each stage has its own.
        torch.manual_seed(self.experiment.seed + zlib.crc32(self.task.stage.encode()))
        trained = {
            needed: load_model(self.run_location.join(needed, FINAL_FOLDER)).network
            for needed in STAGES[self.task.stage].needs
        }
        parts = Parts(
            network=self.experiment.network,
            discriminator=self.experiment.discriminator,
            backbones=self.experiment.weights,
            trained=trained,
        )
        stage = build_stage(self.task.stage, self.settings, parts).to(self.device)
        if self.world_size > 1:
            stage.parallelize(self._distributed)
        return stage

    def _distributed(self, module: nn.Module) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else None
        # Spectral norm's buffers follow from the weights, which are equal: nothing to broadcast.
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(
                Path(folder) / STATE_FILE, map_location=self.device, weights_only=True
            )
        self.stage.load_state_dict(state)

    def _stream(self) -> CropStream:
        domains = self.stage.domains
        sets = tuple(name for name in ("source", "target") if name in domains)
        return CropStream(
            self.experiment.data,
            batch_size=self.settings.batch_size,
            crop=self.settings.crop,
            same_place=self.settings.same_place_crops,
            sets=sets,
            fields=domains,
            seed=self.experiment.seed,
            rank=self.rank,
            world_size=self.world_size,
            start_iteration=self.stage.iteration,
            end_iteration=self.settings.iterations,
        )

    def _train(self) -> None:
        stream = self._stream()
        averages, clock = Averages(), Clock()
        first = self.stage.iteration + UNTIMED_ITERATIONS
        batches = on_device(iter(stream), self.stage.domains, self.device)
        try:
            while self.stage.iteration < self.settings.iterations:
                with clock.phase("data_wait"):
                    received = next(batches)
                batch = {name: received[name] for name in self.stage.domains}
                with clock.phase("step"):
                    figures = self.stage.step(batch)
                    averages.add(figures | {SKIPPED: self._skipped(received)})
                self._after_step(batch, averages, clock)
                if self.stage.iteration == first:
                    clock.take(UNTIMED_ITERATIONS)
        finally:
            stream.close()
            batches.close()

    def _skipped(self, batch: dict[str, Any]) -> Tensor:
        """How many broken records were passed over for this batch."""
        count = sum(int(values.sum()) for name, values in batch.items() if name.endswith(SKIPPED))
        return torch.tensor(float(count), device=self.device)

    def _after_step(self, batch: dict[str, Tensor], averages: Averages, clock: Clock) -> None:
        iteration, logging = self.stage.iteration, self.experiment.logging
        last = iteration == self.settings.iterations
        if iteration % logging.log_interval == 0 or last:
            with clock.phase("log"):
                self._log(averages, clock)
        else:
            self.reporter.post(iteration)
        if iteration % logging.picture_interval == 0 or last:
            with clock.phase("pictures"):
                self._draw(batch)
        if iteration % logging.checkpoint_interval == 0 or last:
            with clock.phase("checkpoint"):
                self._checkpoint()

    def _log(self, averages: Averages, clock: Clock) -> None:
        count = averages.count
        figures = averages.take() | clock.take(count)
        figures["broken_records"] = round(figures.pop(SKIPPED) * count * self.world_size)
        if figures["broken_records"]:
            _log.warning(
                "%s: %d broken records passed over since the last line; `qdmr data inspect "
                "--verify` names them",
                self.experiment.data.path,
                figures["broken_records"],
            )
        optimizer = self.settings.optimizer
        factor = optimizer.factor(self.stage.iteration)
        figures["learning_rate/generator"] = optimizer.generator_lr * factor
        if self.stage.has_discriminators:
            figures["learning_rate/discriminator"] = optimizer.discriminator_lr * factor
        seconds = sum(value for name, value in figures.items() if name.startswith("time/"))
        rate = self.settings.batch_size * self.world_size / seconds
        figures["samples_per_second"] = rate
        if self.journal is not None:
            self.journal.log(self.stage.iteration, figures)
        shown = {k: v for k, v in figures.items() if k.endswith(("/l1", "/perplexity"))}
        shown |= {"samples/s": rate, "data_wait": figures["data_wait_fraction"]}
        self.reporter.post(self.stage.iteration, shown)

    def _draw(self, batch: dict[str, Tensor]) -> None:
        if self.journal is None:
            return
        count = self.experiment.logging.picture_count
        shown = {name: images[:count] for name, images in batch.items()}
        pictures = self.stage.pictures(shown)
        atlas = pictures.pop(ATLAS, None)
        sheets: dict[str, np.ndarray] = {"samples": sample_sheet(pictures, count)}
        if atlas is not None:
            sheets[ATLAS] = atlas_sheet(atlas)
        for name, sheet in sheets.items():
            self.journal.picture(self.stage.iteration, name, sheet)

    def _checkpoint(self) -> None:
        """Every rank reports; rank 0's state is what is kept."""
        metrics = {"iteration": self.stage.iteration, "stage": self.task.stage}
        if self.journal is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="qdmr-checkpoint-") as folder:
            torch.save(self.stage.state_dict(), Path(folder) / STATE_FILE)
            self.journal.publish()
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            name = f"checkpoint_{self.stage.iteration:09d}"
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)

    def _save_final(self) -> None:
        save_model(
            self.run_location.join(self.task.stage, FINAL_FOLDER),
            cast(VQGAN | QDMR, self.stage.network),
            kind=KIND_OF_STAGE[self.task.stage],
            step=self.stage.iteration,
            digest=self.task.digest,
        )
