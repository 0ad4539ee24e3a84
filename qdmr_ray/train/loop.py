"""The training loop of one worker: a stream of crops into ``stage.step``, until it is done.

It knows stages only by their interface. Every phase of an iteration is timed under a name, so that
a slow run explains itself: ``data_wait``, ``step``, ``log``, ``checkpoint``.
"""

from __future__ import annotations

import json
import math
import resource
import socket
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import ray.exceptions
import torch
import torch.distributed
from torch import Tensor

from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.data.streaming.stream import CropStream, InProcessStream
from qdmr_ray.errors import QdmrError
from qdmr_ray.models.files import KIND_OF_STAGE, save_model
from qdmr_ray.models.layout import BEGUN_FILE, CHECKPOINTS_FOLDER, FINAL_FOLDER
from qdmr_ray.nets import QDMR, VQGAN
from qdmr_ray.patience import REPORT
from qdmr_ray.stages import Share, flush_denormals
from qdmr_ray.storage import Location, open_location
from qdmr_ray.train.build import built_stage
from qdmr_ray.train.checkpoints import Checkpoint, CheckpointStore, Progress
from qdmr_ray.train.divergence import Guard, NotFiniteError
from qdmr_ray.train.logging.logbook import Logbook
from qdmr_ray.train.logging.timing import Averages, Clock
from qdmr_ray.train.preemption import Notice, Preempted
from qdmr_ray.train.prefetch import on_device
from qdmr_ray.train.snapshot import random_state, restore_random_state
from qdmr_ray.train.validation import VALIDATED, Validation, mean_figures
from qdmr_ray.train.worker_context import Host, RayTrainHost, threads_for

# The end of the columns that count broken records.
SKIPPED = "_skipped"
T = TypeVar("T")
Streams = type[CropStream] | type[InProcessStream]


@dataclass(frozen=True)
class Task:
    """What the driver hands to every worker; plain values only, as they cross processes."""

    experiment: dict[str, Any]
    stage: str
    run_uri: str
    digest: str
    # Where the results of the stages lie that this one starts from, by stage.
    needs: dict[str, str]
    board: Any = None
    # Whether somebody reads the log's lines from the board.
    watched: bool = False


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of every Ray Train worker; ``config["task"]`` is a :class:`Task`."""
    task = config["task"]
    Worker(task, RayTrainHost(task.board if task.watched else None)).run()


class Worker:
    """One rank of one stage."""

    def __init__(self, task: Task, host: Host) -> None:
        self.host = host
        self.rank, self.world_size, self.device = host.rank, host.world_size, host.device
        self.task = task
        self.experiment: Experiment = experiment_from_dict(task.experiment)
        self.settings = self.experiment.stage(task.stage)
        self.run_location: Location = open_location(
            task.run_uri, endpoint=self.experiment.data.s3_endpoint
        )
        self._check_storage()
        torch.set_num_threads(self.experiment.scaling.threads or threads_for(host))
        # Before networks are loaded, which starts the threads.
        flush_denormals()
        self.stage = built_stage(task.stage, task.needs, self.experiment, host)
        self.logbook = Logbook(
            self.experiment.name,
            task.stage,
            iterations=self.settings.iterations,
            host=host,
            board=task.board,
        )
        self.checkpoints = self._checkpoint_store()
        # What the ranks tell each other beside gradients stays on the CPU.
        self.group: Any = None
        if self.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo")
        self.notice = Notice(self.group, self.rank, host.is_leaving, self.logbook.asked_to_stop)
        self.guard = Guard(self.experiment.guard, task.stage, self.group)
        self.validation: Validation | None = None
        if self.experiment.logging.validation_interval is not None:
            self.validation = Validation(
                self.experiment, rank=self.rank, world_size=self.world_size
            )
        self._figures: dict[str, float] = {}
        self._validated: dict[str, float] = {}
        self._reported = -math.inf
        self._skipped = 0

    def run(self) -> None:
        """Trains from the newest checkpoint to the end, and leaves the stage's result."""
        self._resume()
        self.logbook.open(self.run_location, self.stage.iteration)
        try:
            if self.stage.iteration < self.settings.iterations:
                self._train()
        except BaseException:
            # What is being written may still be of use; its own failure would hide the first one.
            with suppress(QdmrError):
                self.checkpoints.wait()
            # In a store these lines, which say how it went wrong, would be gone otherwise.
            self.logbook.save_what_can_be()
            raise
        self.checkpoints.wait()
        if self.rank == 0:
            self._save_final()
        self.logbook.close()
        self.logbook.leave()

    def _check_storage(self) -> None:
        """A disk of the driver's machine that this one doesn't have would take checkpoints in, and
        nobody would find them again."""
        begun = self.run_location.join(self.task.stage, BEGUN_FILE)
        if begun.exists() and json.loads(begun.read_bytes())["digest"] == self.task.digest:
            return
        raise QdmrError(
            f"{begun.uri}: the worker on {socket.gethostname()} doesn't see what the command has "
            "begun there; name a --storage that all nodes reach, s3://… or a shared disk"
        )

    def _resume(self) -> None:
        checkpoint = self._newest_checkpoint()
        if checkpoint is None:
            return
        if (checkpoint.progress.stage, checkpoint.progress.digest) != (
            self.task.stage,
            self.task.digest,
        ):
            raise QdmrError(
                f"{checkpoint.folder.uri}: was written with other settings or data; choose "
                "another --name, or take the change back"
            )
        self.stage.load_state_dict(checkpoint.state())
        metrics = checkpoint.progress.metrics
        self._validated = {name: metrics[name] for name in VALIDATED if name in metrics}
        if checkpoint.world_size == self.world_size:
            restore_random_state(checkpoint.random_state(self.rank), self.device)
        elif self.rank == 0:
            self.logbook.warn(
                f"{checkpoint.folder.uri}: is of {checkpoint.world_size} workers, not "
                f"{self.world_size}; random numbers start anew"
            )

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The same on every rank: rank 0 looks for it."""
        found = self.checkpoints.newest() if self.rank == 0 else None
        if self.group is None:
            return found
        names = [found.name if found else None]
        torch.distributed.broadcast_object_list(names, src=0, group=self.group)
        name = names[0]
        if name is None or found is not None:
            return found
        return self.checkpoints.named(name, self.rank)

    def _checkpoint_store(self) -> CheckpointStore:
        logging = self.experiment.logging
        return CheckpointStore(
            self.run_location.join(self.task.stage, CHECKPOINTS_FOLDER),
            keep=logging.keep_checkpoints,
            best_metric=logging.best_metric,
            best_mode=cast(Literal["min", "max"], logging.best_mode),
            warn=self.logbook.warn,
        )

    def _stream(self, kind: Streams) -> CropStream | InProcessStream:
        domains, share = self.stage.domains, cast(Share, self.stage.share)
        sets = tuple(name for name in ("source", "target") if name in domains)
        return kind(
            self.experiment.data,
            batch_size=share.count,
            first=share.first,
            total=share.total,
            crop=self.settings.crop,
            same_place=self.settings.same_place_crops,
            sets=sets,
            fields=domains,
            seed=self.experiment.seed,
            start_iteration=self.stage.iteration,
            end_iteration=self.settings.iterations,
        )

    def _train(self) -> None:
        averages, clock = Averages(), Clock()
        first = self.stage.iteration + self.stage.slow_steps
        with closing(self._batches()) as batches:
            while self.stage.iteration < self.settings.iterations:
                with clock.phase("data_wait"):
                    received = next(batches)
                batch = {name: received[name] for name in self.stage.domains}
                self.stage.measures_gradients = self._logs_at(self.stage.iteration + 1)
                with clock.phase("step"):
                    figures = self.stage.step(batch)
                    self.guard.watch(figures, self.stage.iteration)
                    averages.add(figures)
                self._skipped += _skipped(received)
                clock.tick()
                self._after_step(batch, averages, clock)
                if self.notice.given(self.stage.iteration):
                    self._leave()
                if self.stage.iteration == first:
                    clock.take()

    def _batches(self) -> Generator[dict[str, Any], None, None]:
        try:
            yield from self._loaded(CropStream)
        except ray.exceptions.TaskUnschedulableError:
            # Ray starts no more tasks on a node that is about to go. Until all ranks stop, this
            # one loads the same batches by itself.
            self.notice.hurry()
            yield from self._loaded(InProcessStream)

    def _loaded(self, kind: Streams) -> Generator[dict[str, Any], None, None]:
        stream = self._stream(kind)
        batches = on_device(iter(stream), self.stage.domains, self.device)
        try:
            yield from batches
        finally:
            stream.close()
            batches.close()

    def _after_step(self, batch: dict[str, Tensor], averages: Averages, clock: Clock) -> None:
        iteration, logging = self.stage.iteration, self.experiment.logging
        last = iteration == self.settings.iterations
        if self._logs_at(iteration) or self._saves_at(iteration):
            # Before a bad state is saved.
            self.logbook.warn(*self._guarded(self.guard.check))
        if self._logs_at(iteration):
            if self._validates_at(iteration):
                with clock.phase("validation"):
                    self._validate()
            with clock.phase("log"):
                self._log(averages, clock)
        else:
            self.logbook.progress(iteration)
        if iteration % logging.picture_interval == 0 or last:
            with clock.phase("pictures"):
                self._draw(batch)
        if self._saves_at(iteration):
            with clock.phase("checkpoint"):
                if self._is_sound():
                    self._checkpoint()

    def _is_sound(self) -> bool:
        """Whether this state may be kept; warns where it may not."""
        weights = [*self.stage.generator.parameters(), *self.stage.discriminators.parameters()]
        sound, warnings = self._guarded(
            lambda: self.guard.check_weights(weights, self.stage.iteration)
        )
        self.logbook.warn(*warnings)
        return sound

    def _guarded(self, look: Callable[[], T]) -> T:
        """What the guard finds; where it ends the run, Prometheus sees why."""
        try:
            return look()
        except NotFiniteError as error:
            self.logbook.not_finite(error.figure)
            self.host.linger()
            raise

    def _saves_at(self, iteration: int) -> bool:
        interval = self.experiment.logging.checkpoint_interval
        return iteration % interval == 0 or iteration == self.settings.iterations

    def _logs_at(self, iteration: int) -> bool:
        interval = self.experiment.logging.log_interval
        last = iteration == self.settings.iterations
        return iteration % interval == 0 or last or self._validates_at(iteration)

    def _validates_at(self, iteration: int) -> bool:
        interval = self.experiment.logging.validation_interval
        if interval is None:
            return False
        return iteration % interval == 0 or iteration == self.settings.iterations

    def _validate(self) -> None:
        assert self.validation is not None
        measured = self._of_all_ranks((self.validation.measure(self.stage.result()),))
        self._validated = mean_figures(measured[0])

    def _log(self, averages: Averages, clock: Clock) -> None:
        count = averages.count
        # Taken with the other figures, whose means over the workers are one exchange.
        averages.sums[SKIPPED] = torch.tensor(float(self._skipped * count), device=self.device)
        self._skipped = 0
        figures = averages.take() | clock.take()
        figures["broken_records"] = round(figures.pop(SKIPPED) * self.world_size)
        if figures["broken_records"]:
            self._warn_of_broken()
        for name, norm in self.stage.gradient_norms().items():
            figures[f"gradient_norm/{name}"] = float(norm)
        figures["memory_bytes"] = float(_memory_in_use(self.device))
        optimizer = self.settings.optimizer
        factor = optimizer.factor(self.stage.iteration)
        figures["learning_rate/generator"] = optimizer.generator_lr * factor
        if self.stage.has_discriminators:
            figures["learning_rate/discriminator"] = optimizer.discriminator_lr * factor
        seconds = sum(value for name, value in figures.items() if name.startswith("time/"))
        figures["workers"] = self.world_size
        figures["samples_per_second"] = cast(Share, self.stage.share).total / seconds
        if self._validates_at(self.stage.iteration):
            figures |= self._validated
        # A checkpoint between two validations is judged by the one before it.
        self._figures = self._validated | figures
        self._check_best_metric()
        self.logbook.log(self.stage.iteration, figures)
        # Afterwards, so that the line that explains an end is there.
        self.logbook.warn(*self.guard.check_means(figures, self.stage.iteration))

    def _draw(self, batch: dict[str, Tensor]) -> None:
        if self.logbook.draws:
            count = self.experiment.logging.picture_count
            shown = {name: images[:count] for name, images in batch.items()}
            self.logbook.draw(self.stage.iteration, self.stage.pictures(shown), count)

    def _checkpoint(self) -> None:
        """Rank 0 keeps its state and all ranks' random states, and all tell Ray Train."""
        iteration, now = self.stage.iteration, time.monotonic()
        last = iteration == self.settings.iterations
        report = last or now - self._reported >= REPORT.seconds
        states, reports = self._of_all_ranks((random_state(self.device), report))
        if self.rank == 0:
            progress = Progress(iteration, self.task.stage, self.task.digest, self._figures)
            # Stored first, so that no line is missing after resuming from this checkpoint.
            publish = self.logbook.publish
            self.checkpoints.save(progress, self.stage.state_dict(), states, publish)
        # A report is a call on all ranks: rank 0's clock decides for them.
        if reports[0]:
            self._reported = now
            self.host.report({"iteration": iteration, "stage": self.task.stage, **self._figures})

    def _of_all_ranks(self, own: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """For each entry of ``own`` the entries of all ranks, in their order."""
        gathered: list[Any] = [own] * self.world_size
        if self.group is not None:
            torch.distributed.all_gather_object(gathered, own, group=self.group)
        return list(zip(*gathered, strict=True))

    def _warn_of_broken(self) -> None:
        path = self.experiment.data.path
        self.logbook.warn_once(
            "broken records",
            f"{path}: broken records are passed over (data.skip_broken; broken_records in "
            f"metrics.jsonl counts them); `qdmr data inspect {path} --verify` names them",
        )

    def _check_best_metric(self) -> None:
        name = self.experiment.logging.best_metric
        if self.validation is not None and not self._validated and name in VALIDATED:
            return
        if self.rank == 0 and name is not None and name not in self._figures:
            self.logbook.warn_once(
                "best metric",
                f"logging.best_metric: stage {self.task.stage} logs no {name}, so only its newest "
                f"checkpoints are kept; it logs {', '.join(sorted(self._figures))}",
            )

    def _leave(self) -> None:
        """Ends all ranks at a checkpoint, for Ray Train to start them again elsewhere."""
        iteration = self.stage.iteration
        if iteration == self.settings.iterations:
            return
        if not self._saves_at(iteration):
            self.logbook.warn(*self._guarded(self.guard.check))
            if self._is_sound():
                self._checkpoint()
        self.checkpoints.wait()
        if self.group is not None:
            # The first rank that ends takes the others with it: not before rank 0 has written.
            torch.distributed.barrier(group=self.group)
        self.logbook.leave()
        raise Preempted(f"stopped after iteration {iteration}: a worker is about to be taken away")

    def _save_final(self) -> None:
        if not self._is_sound():
            raise QdmrError(
                f"stage {self.task.stage}: its weights are not finite after the last iteration, so "
                "there is no result; lower its learning rates or set their clip, under another "
                "--name"
            )
        save_model(
            self.run_location.join(self.task.stage, FINAL_FOLDER),
            cast(VQGAN | QDMR, self.stage.result()),
            kind=KIND_OF_STAGE[self.task.stage],
            step=self.stage.iteration,
            digest=self.task.digest,
        )


def _skipped(batch: dict[str, Any]) -> int:
    """How many broken records were passed over for this batch."""
    return sum(int(values.sum()) for name, values in batch.items() if name.endswith(SKIPPED))


def _memory_in_use(device: torch.device) -> int:
    """Most bytes so far: of the allocator on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
