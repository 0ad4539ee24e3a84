"""Training one stage: with Ray Train's workers, or in the process that asks for it."""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.execution.callback import ControllerCallback

from qdmr_ray.config import Experiment, ScalingSettings
from qdmr_ray.ray_cluster import joins_a_cluster
from qdmr_ray.train.failures import (
    ClearAway,
    EndAtOnce,
    LostWhileStarting,
    Patience,
    training_error,
)
from qdmr_ray.train.logging.progress_bar import new_board, shown_progress
from qdmr_ray.train.loop import Task, Worker, train_worker
from qdmr_ray.train.preemption import WatchedTorchConfig
from qdmr_ray.train.worker_context import OwnHost, Watch

# How often the log's lines are fetched for who watches a stage.
_WATCH_SECONDS = 0.5
# Ending a training takes two seconds; one that is just being started is waited for.
_ABORT_SECONDS = 30.0
# How long a checkpoint may take that is written because of Ctrl-C.
_SAVE_SECONDS = 120.0


class Launch(Protocol):
    """Trains a stage to its end; ``gpu`` says whether on GPUs, ``watch`` takes the log's lines."""

    def __call__(
        self, experiment: Experiment, task: Task, *, gpu: bool, watch: Watch | None
    ) -> None:
        """Raises QdmrError, or what training raised."""


def with_workers(experiment: Experiment, task: Task, *, gpu: bool, watch: Watch | None) -> None:
    """Trains with Ray Train's workers, as ``experiment.scaling`` says.

    ``watch`` is called in this thread; without it, progress is shown.

    Raises:
        QdmrError: training failed, in one line.
    """
    board = new_board()
    task = Task(**{**vars(task), "board": board, "watched": watch is not None})
    # What Ray Train keeps of a run would disturb the next one of the same name; the controller,
    # which alone uses it, runs on this machine.
    scratch = tempfile.mkdtemp(prefix="qdmr-ray-")
    trainer = _trainer(experiment, task, gpu, scratch)
    iterations = experiment.stage(task.stage).iterations
    try:
        if watch is None:
            with shown_progress(task.stage, iterations, board):
                _fit(trainer, board)
        else:
            _fit_watched(trainer, board, watch)
    except ray.train.TrainingFailedError as error:
        raise training_error(task.stage, error) from error
    finally:
        ray.kill(board)
        shutil.rmtree(scratch, ignore_errors=True)


class InThisProcess:
    """Trains in this process, one of ``sharing`` on its machine."""

    def __init__(self, *, sharing: int) -> None:
        self._sharing = sharing

    def __call__(
        self, experiment: Experiment, task: Task, *, gpu: bool, watch: Watch | None
    ) -> None:
        """Raises what training raises."""
        host = OwnHost(gpu=gpu, local_world_size=self._sharing, watch=watch or _nobody)
        try:
            Worker(task, host).run()
        finally:
            if gpu:
                # The next stage wants the memory, and a stage's references go round in circles.
                gc.collect()
                torch.cuda.empty_cache()


def _nobody(stage: str, iteration: int, figures: Any) -> None:
    pass


def _trainer(experiment: Experiment, task: Task, gpu: bool, scratch: str) -> TorchTrainer:
    scaling = experiment.scaling
    resources = {"CPU": scaling.cpus_per_worker}
    if gpu:
        resources["GPU"] = scaling.gpus_per_worker
    return Trainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=WatchedTorchConfig(backend=_backend(scaling, gpu)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_worker_count(scaling),
            elastic_resize_monitor_interval_s=scaling.resize_interval,  # type: ignore[call-arg]
            use_gpu=gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=f"{experiment.name}-{task.stage}",
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(
                max_failures=scaling.max_failures,
                # Patience says when it is enough.
                controller_failure_limit=-1,  # type: ignore[call-arg]
            ),
            callbacks=[
                EndAtOnce(experiment.name, task.stage),  # type: ignore[list-item]
                ClearAway(),  # type: ignore[list-item]
                Patience(scaling.node_wait),  # type: ignore[list-item]
                _Introduction(task.board),  # type: ignore[list-item]
            ],
        ),
    )


class Trainer(TorchTrainer):
    """Without actors that have nothing to do, each of which takes 1.5 s of a CPU to start.

    One hands out datasets: workers read by themselves (``data.stream``). One removes the workers'
    placement group when the controller is gone; it asks the dashboard (ray-project/ray #54305), and
    a Ray that ends with the command has none. With a policy for failures that forgives more, and
    without Ray Train's answer to Ctrl-C, which would stay in place when the training has long ended
    and makes a success of an interruption.
    """

    def _create_default_callbacks(self) -> list[Any]:
        # Unknown to annotations, which are those of an older trainer.
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        idle: tuple[type, ...] = (DatasetsCallback,)
        if not joins_a_cluster():
            idle += (PlacementGroupCleanerCallback,)
        return [callback for callback in callbacks if not isinstance(callback, idle)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Python's own handler raises KeyboardInterrupt, which ends the training (``_fit``)."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        # An argument that no setting reaches.
        arguments["failure_policy"] = LostWhileStarting(
            self.run_config.failure_config  # type: ignore[arg-type]
        )
        return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]


def _backend(scaling: ScalingSettings, gpu: bool) -> str:
    # NCCL takes one rank per GPU; workers that share one exchange gradients through the CPU.
    return "nccl" if gpu and scaling.gpus_per_worker == 1 else "gloo"


def _worker_count(scaling: ScalingSettings) -> Any:
    """As Ray Train takes it; its annotations don't know of a range yet."""
    if scaling.min_workers is None:
        return scaling.workers
    return scaling.min_workers, scaling.workers


class _Introduction(ControllerCallback):
    """Tells the board who controls the training: Ray Train keeps that to itself, and has no call
    that ends a training from outside."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the controller."""
        self._board.introduce.remote(ray.get_runtime_context().current_actor)


def _fit(trainer: TorchTrainer, board: Any) -> None:
    try:
        trainer.fit()
    except KeyboardInterrupt:
        # A second one ends it without.
        with suppress(KeyboardInterrupt):
            _save_first(board)
        _abort(board)
        raise


def _save_first(board: Any) -> None:
    """Lets a training that has begun write a checkpoint, so that no step is done again."""
    if ray.get(board.read.remote()) is None:
        return
    print("qdmr: saving a checkpoint; Ctrl-C again ends without", file=sys.stderr, flush=True)
    ray.get(board.stop.remote())
    end = time.monotonic() + _SAVE_SECONDS
    while not ray.get(board.left.remote()) and time.monotonic() < end:
        time.sleep(_WATCH_SECONDS)


def _fit_watched(trainer: TorchTrainer, board: Any, watch: Watch) -> None:
    """Calls ``watch`` here while the training runs in a thread: what ``watch`` raises, such as the
    order of a sweep's scheduler to stop, ends the training before it reaches the caller."""
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit, daemon=True, name="fit")
    thread.start()
    try:
        while True:
            ended = not thread.is_alive()
            for stage, iteration, figures in ray.get(board.lines.remote()):
                watch(stage, iteration, figures)
            if ended:
                break
            time.sleep(_WATCH_SECONDS)
    except BaseException:
        _abort(board)
        thread.join(_ABORT_SECONDS)
        raise
    if failures:
        raise failures[0]


def _abort(board: Any) -> None:
    """Ends the training with its workers and its placement group.

    Left to itself, a controller whose owner has gone leaves the placement group to a detached
    actor, which finds out through the dashboard, and so never where there is none
    (ray-project/ray #54305).
    """
    end = time.monotonic() + _ABORT_SECONDS
    while (controller := ray.get(board.controller.remote())) is None:
        if time.monotonic() > end:
            return
        time.sleep(_WATCH_SECONDS)
    with suppress(ray.exceptions.RayError):
        ray.get(controller.abort.remote(), timeout=_ABORT_SECONDS)
