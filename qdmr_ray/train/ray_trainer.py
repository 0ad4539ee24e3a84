"""Training one stage: with Ray Train's workers, or in the calling process."""

import gc
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.data
import ray.train
import torch
from ray.train.torch import TorchTrainer

from qdmr_ray.config import Experiment, ScalingSettings
from qdmr_ray.data.streaming.feed import Feed, FeedConfig
from qdmr_ray.data.streaming.stream import InProcessStream
from qdmr_ray.models.layout import CHECKPOINTS_FOLDER
from qdmr_ray.patience import ABORT, RESIZE, SAVE, WATCH
from qdmr_ray.ray_compat import TrainerWithPolicies, abort
from qdmr_ray.train.batches import crop_stream, feed_of
from qdmr_ray.train.checkpoints import CheckpointStore
from qdmr_ray.train.failures import EndAtOnce, LostWhileStarting, Supervision, training_error
from qdmr_ray.train.logging.board import News, new_board
from qdmr_ray.train.logging.progress_bar import ProgressBar
from qdmr_ray.train.loop import Task, Worker, train_worker
from qdmr_ray.train.preemption import WatchedTorchConfig
from qdmr_ray.train.resizing import SavedResizes
from qdmr_ray.train.worker_context import Host, Watch

# A slow or lost board must not disturb the training.
_BOARD_SECONDS = 2.0


# Trains a stage to its end, and raises what training raised. It is called with the experiment and
# the task, and with ``gpu`` (whether on GPUs) and ``watch``, which takes the log's lines.
Launch = Callable[..., None]


def with_workers(experiment: Experiment, task: Task, *, gpu: bool, watch: Watch | None) -> None:
    """Trains with Ray Train's workers, as ``experiment.scaling`` says. ``watch`` is called in
    this thread; without it, a progress bar is shown. Raises QdmrError, in one line, if training
    failed."""
    board = new_board()
    task = replace(task, board=board, watched=watch is not None)
    # The state that Ray Train keeps of a run would disturb the next one of the same name; only the
    # controller uses it, and runs on this machine.
    scratch = tempfile.mkdtemp(prefix="qdmr-ray-")
    bar = None if watch else ProgressBar(task.stage, experiment.stage(task.stage).iterations)

    def look(news: News) -> None:
        if bar is not None:
            bar.show(news)
        if watch is not None:
            for line in news.lines:
                watch(*line)

    try:
        _fit(_trainer(experiment, task, gpu, scratch), board, look)
    except ray.train.TrainingFailedError as error:
        raise training_error(task.stage, error) from error
    finally:
        if bar is not None:
            bar.show(_news(board))
            bar.close()
        ray.kill(board)
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class InThisProcess:
    """Trains in this process, one of ``sharing`` on its machine."""

    sharing: int

    def __call__(
        self, experiment: Experiment, task: Task, *, gpu: bool, watch: Watch | None
    ) -> None:
        """Raises what training raises."""
        try:
            Worker(task, Host(gpu=gpu, local_world_size=self.sharing, watch=watch)).run()
        finally:
            if gpu:
                # The next stage needs the memory, and a stage has reference cycles.
                gc.collect()
                torch.cuda.empty_cache()


def _trainer(experiment: Experiment, task: Task, gpu: bool, scratch: str) -> TorchTrainer:
    scaling, resources = experiment.scaling, {"CPU": experiment.scaling.cpus_per_worker}
    if gpu:
        resources["GPU"] = scaling.gpus_per_worker
    # Ray Train takes a range of workers, which its annotations lack so far.
    workers: Any = scaling.workers
    if scaling.min_workers is not None:
        workers = scaling.min_workers, scaling.workers
    scaling_config = ray.train.ScalingConfig(
        num_workers=workers,
        elastic_resize_monitor_interval_s=scaling.resize_interval,  # type: ignore[call-arg]
        use_gpu=gpu,
        resources_per_worker=resources,
    )
    # Supervision decides how many failed starts are enough.
    failures: Any = ray.train.FailureConfig(
        max_failures=scaling.max_failures,
        controller_failure_limit=-1,  # type: ignore[call-arg]
    )
    request = crop_stream(InProcessStream, experiment, task.stage).request
    feed = feed_of(experiment, task.stage, request, task.board)
    resizes = None
    if scaling.min_workers is not None:
        resizes = SavedResizes(scaling_config, task.board, RESIZE.seconds)
    end_at_once: Any = EndAtOnce(experiment.name, task.stage)
    supervision: Any = Supervision(task.board, scaling.node_wait)
    return TrainerWithPolicies(
        train_worker,
        failure_policy=LostWhileStarting(failures),
        scaling_policy=resizes,
        train_loop_config={"task": task},
        torch_config=WatchedTorchConfig(backend=_backend(scaling, gpu)),
        datasets={task.stage: partial(_rounds, experiment, task, feed)},
        dataset_config=FeedConfig(feed),
        scaling_config=scaling_config,
        run_config=ray.train.RunConfig(
            name=f"{experiment.name}-{task.stage}",
            storage_path=scratch,
            failure_config=failures,
            callbacks=[end_at_once, supervision],
        ),
    )


def _rounds(experiment: Experiment, task: Task, feed: Feed) -> ray.data.Dataset:
    """Runs in Ray Train's controller at each start of the workers: feeds them from the checkpoint
    on with which they go on. Where that one turns out to be damaged, they begin earlier, and cut by
    themselves what is missing."""
    checkpoints = experiment.open(task.run_uri).join(task.stage, CHECKPOINTS_FOLDER)
    return feed.rounds(CheckpointStore(checkpoints).newest_iteration())


def _backend(scaling: ScalingSettings, gpu: bool) -> str:
    # NCCL takes one rank per GPU; workers that share one exchange gradients through the CPU.
    return "nccl" if gpu and scaling.gpus_per_worker == 1 else "gloo"


def started(trainer: TorchTrainer) -> Future[Any]:
    """Runs ``trainer.fit()`` in a thread, so that the calling thread can work and be interrupted.
    In a main thread, Ray Train would handle Ctrl-C itself, for good, and report an interruption as
    a success."""
    end: Future[Any] = Future()

    def run() -> None:
        try:
            end.set_result(trainer.fit())
        except BaseException as error:
            end.set_exception(error)

    # A daemon, for which a command that gives up doesn't wait.
    threading.Thread(target=run, daemon=True, name="fit").start()
    return end


def _fit(trainer: TorchTrainer, board: Any, look: Callable[[News], None]) -> None:
    """Trains, and calls ``look`` with the board's news in this thread. An error raised here, such
    as a sweep scheduler's order to stop or the KeyboardInterrupt of Ctrl-C, ends the training
    before it reaches the caller."""
    end = started(trainer)
    try:
        ended = False
        while not ended:
            ended = bool(wait([end], WATCH.seconds).done)
            look(_news(board))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            # A second Ctrl-C ends the training without a checkpoint.
            with suppress(KeyboardInterrupt):
                _save_first(board)
        _abort(board)
        wait([end], ABORT.seconds)
        raise
    end.result()


def _news(board: Any, seconds: float = _BOARD_SECONDS) -> News:
    try:
        news: News = ray.get(board.news.remote(), timeout=seconds)
    except ray.exceptions.RayError:
        return News()
    return news


def _save_first(board: Any) -> None:
    """Lets a training that has begun write a checkpoint, so that no step is done again."""
    # A board that is late on a busy machine must not pass for one that nothing has begun on.
    if _news(board, SAVE.seconds).iteration is None:
        return
    print("qdmr: saving a checkpoint; Ctrl-C again ends without", file=sys.stderr, flush=True)
    ray.get(board.stop.remote())
    end = time.monotonic() + SAVE.seconds
    while not ray.get(board.left.remote()) and time.monotonic() < end:
        time.sleep(WATCH.seconds)


def _abort(board: Any) -> None:
    """Ends the training with its workers and its placement group, which would outlive it."""
    end = time.monotonic() + ABORT.seconds
    # A training that is just being started is waited for.
    while (controller := ray.get(board.controller.remote())) is None:
        if time.monotonic() > end:
            return
        time.sleep(WATCH.seconds)
    with suppress(ray.exceptions.RayError):
        abort(controller, timeout=ABORT.seconds)
