"""The training loop of one worker: a stream of crops into ``stage.step``, until the stage is done.
The loop knows stages only by their interface. Every phase of an iteration is timed under a name, so
that a slow run explains itself: ``data_wait``, ``step``, ``log``, ``checkpoint``."""

import resource
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from qdmr_ray.config import Experiment, LoggingSettings, experiment_from_dict
from qdmr_ray.data.format.manifest import MANIFEST_NAME
from qdmr_ray.errors import QdmrError
from qdmr_ray.models.documents import Begun
from qdmr_ray.models.files import Network, save_model
from qdmr_ray.models.layout import BEGUN_FILE, FINAL_FOLDER
from qdmr_ray.stages import Share, flush_denormals
from qdmr_ray.train.batches import batches_of, skipped_records
from qdmr_ray.train.build import built_stage, pace_at_peak
from qdmr_ray.train.divergence import Guard, NotFiniteError
from qdmr_ray.train.logging.clocks import clock_of
from qdmr_ray.train.logging.logbook import Logbook
from qdmr_ray.train.logging.meter import Meter
from qdmr_ray.train.preemption import Notice, Preempted, Stopped
from qdmr_ray.train.ranks import Ranks
from qdmr_ray.train.resume import Saver, check_claim
from qdmr_ray.train.validation import VALIDATED, Validation, mean_metrics
from qdmr_ray.train.worker_context import Host, RayTrainHost, threads_for

T = TypeVar("T")
UTILIZATION = "model_flops_utilization"


@dataclass(frozen=True)
class Task:
    """The driver's order to every worker; plain values only, as they cross processes."""

    experiment: dict[str, Any]
    stage: str
    run_uri: str
    digest: str
    # The places of the results of the stages that this one starts from, by stage.
    needs: dict[str, str]
    board: Any = None
    # Whether somebody reads the log's lines from the board.
    watched: bool = False
    # The id of the driver's claim on the run, without which nothing may be written there.
    claim: str | None = None
    # What metrics for Prometheus call the run; its name by default.
    label: str | None = None


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of every Ray Train worker; ``config["task"]`` is a :class:`Task`."""
    task = config["task"]
    Worker(task, RayTrainHost(task.board, is_watched=task.watched)).run()


def due_after(iteration: int, end: int, logging: LoggingSettings) -> set[str]:
    """Returns what is due after an iteration: ``validate``, ``log``, ``draw`` and ``save``; after
    the last one, ``end``, everything that is switched on."""
    intervals = {
        "validate": logging.validation_interval,
        "log": logging.log_interval,
        "draw": logging.picture_interval,
        "save": logging.checkpoint_interval,
    }
    due = {w for w, i in intervals.items() if i and (iteration % i == 0 or iteration == end)}
    return due | {"log"} if "validate" in due else due


class Worker:
    """One rank of one stage."""

    def __init__(self, task: Task, host: Host) -> None:
        self.host, self.task = host, task
        self.experiment: Experiment = experiment_from_dict(task.experiment)
        self.settings = self.experiment.stage(task.stage)
        self.run_location = self.experiment.open(task.run_uri)
        self._check_storage()
        torch.set_num_threads(self.experiment.scaling.threads or threads_for(host))
        # Denormals are flushed before networks are loaded, which starts the threads.
        flush_denormals()
        # Before the networks, since it takes memory for a moment.
        self._pace_at_peak = pace_at_peak(task.stage, self.experiment, host)
        self.stage = built_stage(task.stage, task.needs, self.experiment, host)
        iterations, board = self.settings.iterations, task.board
        label = task.label or self.experiment.name
        self.logbook = Logbook(label, task.stage, iterations=iterations, host=host, board=board)
        self.ranks = Ranks(host.rank, host.world_size)
        self.saver = Saver(task, self.experiment, self.run_location, self.ranks, self.logbook)
        self.notice = Notice(self.ranks, host.is_leaving, self.logbook.asked_to_stop)
        self.guard = Guard(self.experiment.guard, task.stage, self.ranks)
        self.validation: Validation | None = None
        if self.experiment.logging.validation_interval is not None:
            self.validation = Validation(self.experiment, host.rank, host.world_size)
        samples = cast(Share, self.stage.share).total
        self.meter = Meter(host.device, clock_of(host.device), samples)
        self._metrics: dict[str, float] = {}
        self._validated: dict[str, float] = {}

    def run(self) -> None:
        """Trains from the newest checkpoint to the end, and leaves the stage's result."""
        metrics = self.saver.resume(self.stage)
        self._validated = {name: metrics[name] for name in VALIDATED if name in metrics}
        self.logbook.open(self.run_location, self.stage.iteration)
        try:
            if self.stage.iteration < self.settings.iterations:
                self._train()
        except BaseException:
            # The checkpoint in writing may still be of use; its failure would hide the first one.
            with suppress(QdmrError):
                self.saver.wait()
            # In a store, these lines, which tell how it went wrong, would otherwise be lost.
            with suppress(QdmrError):
                self.logbook.publish()
            raise
        self.saver.wait()
        if self.host.rank == 0:
            self._save_final()
        self.logbook.close()

    def _check_storage(self) -> None:
        """Refuses disks of the driver's machine alone: checkpoints written here would be lost, and
        there would be nothing to read."""
        host, data = socket.gethostname(), self.experiment.open(self.experiment.data.path)
        file = self.run_location.join(self.task.stage, BEGUN_FILE)
        begun = Begun.read_if_there(file)
        if begun is None or begun.digest != self.task.digest:
            raise QdmrError(
                f"{file.uri}: the worker on {host} doesn't see what the command has begun there; "
                "name a --storage that all nodes reach, s3://… or a shared disk"
            )
        if not data.is_s3 and not data.join(MANIFEST_NAME).exists():
            raise QdmrError(
                f"data.path={data.uri}: the worker on {host} doesn't see this dataset; copy it to "
                "a place that all nodes reach, s3://… or a shared disk"
            )

    def _train(self) -> None:
        stage, end = self.stage, self.settings.iterations
        # The steps before this one are slow, and no measure of the others.
        first = stage.iteration + stage.slow_steps
        batches = batches_of(stage, self.experiment, self.host, self.notice.hurry)
        with closing(batches), closing(stage):
            self.meter.restart()
            while stage.iteration < end:
                with self.meter.data_wait():
                    received = next(batches)
                batch = {name: received[name] for name in stage.domains}
                stage.measures_gradients = "log" in self._due(stage.iteration + 1)
                with self.meter.device_phase("step"):
                    logged = stage.step(batch)
                    # In one tensor, so that watching and adding them up takes a few operations, not
                    # a few for each.
                    names, values = tuple(logged), torch.stack(list(logged.values()))
                    self.guard.watch(names, values, stage.iteration)
                    self.meter.add(names, values, skipped_records(received))
                self._after_step(batch)
                if self.notice.given(stage.iteration) and stage.iteration < end:
                    self._leave()
                if stage.iteration == first:
                    self.meter.restart()

    def _after_step(self, batch: dict[str, Tensor]) -> None:
        iteration = self.stage.iteration
        due = self._due(iteration)
        if due:
            self.meter.catch_up()
        if due & {"log", "save"}:
            # The guard checks before a bad state is saved.
            self.logbook.warn(*self._guarded(self.guard.check))
        if "validate" in due:
            with self.meter.phase("validation"):
                assert self.validation is not None
                measured = self.validation.measure(self.stage.result())
                self._validated = mean_metrics(self.ranks.gathered(measured))
        if "log" in due:
            with self.meter.phase("log"):
                self._log(validated="validate" in due)
        else:
            self.logbook.reached(iteration)
        if "draw" in due and self.host.rank == 0:
            with self.meter.phase("pictures"):
                count = self.experiment.logging.picture_count
                shown = {name: images[:count] for name, images in batch.items()}
                self.logbook.draw(iteration, self.stage.pictures(shown), count)
        if "save" in due:
            with self.meter.phase("checkpoint"):
                self._checkpoint()

    def _due(self, iteration: int) -> set[str]:
        return due_after(iteration, self.settings.iterations, self.experiment.logging)

    def _guarded(self, look: Callable[[], T]) -> T:
        """Returns the guard's findings; where it ends the run, Prometheus receives the cause."""
        try:
            return look()
        except NotFiniteError as error:
            self.logbook.not_finite(error.metric)
            self.host.linger()
            raise

    def _is_sound(self) -> bool:
        """Returns whether this state may be kept; warns where it may not."""
        stage, guard = self.stage, self.guard
        weights = [*stage.generator.parameters(), *stage.discriminators.parameters()]
        sound, warnings = self._guarded(lambda: guard.check_weights(weights, stage.iteration))
        self.logbook.warn(*warnings)
        return sound

    def _log(self, *, validated: bool) -> None:
        iteration = self.stage.iteration
        metrics = self.meter.take()
        if metrics["broken_records"]:
            path = self.experiment.data.path
            self.logbook.warn_once(
                "broken records",
                f"{path}: broken records are passed over (data.skip_broken; broken_records in "
                f"metrics.jsonl counts them); `qdmr data inspect {path} --verify` names them",
            )
        for name, norm in self.stage.gradient_norms().items():
            metrics[f"gradient_norm/{name}"] = float(norm)
        metrics["memory_bytes"] = float(_memory_in_use(self.host.device))
        optimizer = self.settings.optimizer
        factor = optimizer.factor(iteration)
        metrics["learning_rate/generator"] = optimizer.generator_lr * factor
        if self.stage.has_discriminators:
            metrics["learning_rate/discriminator"] = optimizer.discriminator_lr * factor
        metrics["workers"] = self.host.world_size
        if self._pace_at_peak is not None:
            metrics[UTILIZATION] = metrics["samples_per_second"] / self._pace_at_peak
        if validated:
            metrics |= self._validated
        # A checkpoint between two validations is judged by the earlier one.
        self._metrics = self._validated | metrics
        self._check_best_metric()
        self.logbook.log(iteration, metrics)
        # The guard checks after logging, so that the log holds the line that explains an end.
        self.logbook.warn(*self.guard.check_means(metrics, iteration))

    def _check_best_metric(self) -> None:
        name = self.experiment.logging.best_metric
        if self.validation is not None and not self._validated and name in VALIDATED:
            return
        if self.host.rank == 0 and name is not None and name not in self._metrics:
            self.logbook.warn_once(
                "best metric",
                f"logging.best_metric: stage {self.task.stage} logs no {name}, so only its newest "
                f"checkpoints are kept; it logs {', '.join(sorted(self._metrics))}",
            )

    def _checkpoint(self) -> None:
        """Saves a checkpoint if the state is sound, and tells Ray Train."""
        if self._is_sound() and self.saver.save(self.stage, self._metrics):
            news = {"iteration": self.stage.iteration, "stage": self.task.stage}
            self.host.report({**news, **self._metrics})

    def _leave(self) -> None:
        """Ends all ranks at a checkpoint, for Ray Train to start others."""
        iteration = self.stage.iteration
        if "save" not in self._due(iteration):
            self.logbook.warn(*self._guarded(self.guard.check))
            self._checkpoint()
        self.saver.wait()
        asked = self.ranks.of_the_first(self.logbook.asked_to_stop())
        # The first rank that ends takes the others with it, so rank 0 must have written before.
        self.ranks.wait_for_all()
        self.logbook.leave()
        if asked:
            raise Stopped(f"stopped after iteration {iteration}, as Ctrl-C or a resize asked")
        raise Preempted(f"stopped after iteration {iteration}: a worker is about to be taken away")

    def _save_final(self) -> None:
        if not self._is_sound():
            raise QdmrError(
                f"stage {self.task.stage}: its weights are not finite after the last iteration, so "
                "there is no result; lower its learning rates or set their clip, under another "
                "--name"
            )
        folder, network = self.run_location.join(self.task.stage, FINAL_FOLDER), self.stage.result()
        step, digest = self.stage.iteration, self.task.digest
        check_claim(self.task, self.run_location)
        save_model(folder, cast(Network, network), kind=self.stage.kind, step=step, digest=digest)


def _memory_in_use(device: torch.device) -> int:
    """Returns the peak memory in bytes: the allocator's on a GPU, this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
