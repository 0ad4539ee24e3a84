"""Starting or joining Ray, and checking that it can hold what is about to run."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray
import torch
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.data._internal.execution.node_trackers.actor_location import (
    get_or_create_actor_location_tracker,
)
from ray.data._internal.stats import get_or_create_stats_actor

from qdmr_ray.config import Experiment
from qdmr_ray.data.streaming.stream import required_cpus
from qdmr_ray.errors import QdmrError, SettingsError

# A worker, and a CPU for Ray Data beside it.
SMALLEST_LOCAL_CPUS = 2
# A resource of heads whose cluster has an autoscaler.
AUTOSCALING = "autoscaling"
# Set by the command line's -v.
VERBOSE_VARIABLE = "QDMR_VERBOSE"
_STDERR = 2
_REMARK = b"Set ray log level from environment variable"


def ensure_ray() -> None:
    """Joins the cluster that ``RAY_ADDRESS`` names, or starts an embedded local Ray.

    Raises:
        QdmrError: the cluster can't be reached.
    """
    if ray.is_initialized():
        return
    # An experiment must not phone home from a cluster whose owner wasn't asked.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers' prints reach the driver once, through Ray's log forwarding.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # The dashboard's page of training runs, where there is a dashboard.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1" if joins_a_cluster() else "0")
    verbose = bool(os.environ.get(VERBOSE_VARIABLE))
    level = logging.INFO if verbose else logging.ERROR
    if not verbose:
        _quiet()
    address = os.environ.get("RAY_ADDRESS")
    remark: AbstractContextManager[None] = nullcontext() if verbose else _without_the_cores_remark()
    try:
        with remark:
            _init(address, level, verbose=verbose)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        hint = ""
        if address and os.environ.get("RAY_AUTH_MODE") != "token":
            hint = " (where the cluster asks for a token, set RAY_AUTH_MODE=token)"
        raise QdmrError(f"{where} can't be used: {' '.join(str(error).split())}{hint}") from error
    _start_helpers_here()


def _init(address: str | None, level: int, *, verbose: bool) -> None:
    if address:
        ray.init(address=address, logging_level=level, log_to_driver=verbose)
        return
    cpus = max(SMALLEST_LOCAL_CPUS, os.cpu_count() or 1)
    # Ray runs workers at nice 15. On a machine that does anything else, training would
    # wait for it at every thread barrier.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray frees what nobody uses once a second; crops go faster than that.
    os.environ.setdefault("RAY_free_objects_period_milliseconds", "100")
    # How often Ray Train looks at its workers: their end and their loss are seen sooner.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Nobody drains the only node. A process less, which takes 1.5 s of a CPU to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Without an address Ray joins whichever cluster was started last on this machine: that
    # of another command, which takes it along when it ends.
    ray.init(
        "local",
        num_cpus=cpus,
        include_dashboard=False,
        logging_level=level,
        log_to_driver=verbose,
    )


def _start_helpers_here() -> None:
    """Starts Ray Data's and Ray Train's lasting actors on this node.

    Each is made by whoever needs it first, on the node where that runs, and stays until the cluster
    ends: left to a training worker, they would keep the autoscaler from giving back its node, and
    be gone for everybody when a spot instance is taken away. Where Ray ends with this command, only
    the one that every training waits for is started, beside the controller and not after it.
    """
    get_or_create_autoscaling_coordinator()
    if joins_a_cluster():
        get_or_create_stats_actor()
        get_or_create_actor_location_tracker()


def joins_a_cluster() -> bool:
    """Whether commands join a cluster that is there, instead of starting a Ray of their own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _quiet() -> None:
    """Ray's own remarks go to its log files alone: what a user must know arrives as an error, and
    the progress bar is not broken up. ``-v`` shows everything."""
    # The core's error level reports an actor option that Ray Data and Ray Train choose themselves
    # (ray-project/ray #53727). Read when Ray starts.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _without_the_cores_remark() -> Iterator[None]:
    """Ray's core says that it has read the level of its log, which nothing switches off.

    It writes to the process's standard error and not to Python's. What else is written there
    meanwhile comes when the block ends.
    """
    sys.stderr.flush()
    stderr = os.dup(_STDERR)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), _STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if _REMARK not in line:
                    os.write(_STDERR, line)


def capacity() -> dict[str, float]:
    """Resources that the cluster has; infinite CPUs and GPUs where it grows when it has to.

    Ray (2.60) tells nobody how far its autoscaler goes, not even that there is one. So the head of
    a cluster that has one offers the resource ``autoscaling`` (``cluster/`` does so); and one
    without any CPU can only be about to grow.
    """
    now: dict[str, float] = ray.cluster_resources()
    if now.get(AUTOSCALING) or not now.get("CPU"):
        return {**now, "CPU": math.inf, "GPU": math.inf}
    return now


def uses_gpu(experiment: Experiment) -> bool:
    """Whether the workers train on GPUs: as set, or when the cluster has enough of them.

    Raises:
        SettingsError: GPUs are asked for and the cluster has fewer, or a setting needs one.
    """
    gpus = float(capacity().get("GPU", 0))
    scaling = experiment.scaling
    workers = scaling.fewest_workers
    needed = workers * scaling.gpus_per_worker
    if scaling.gpu and gpus < needed:
        name = "workers" if scaling.min_workers is None else "min_workers"
        raise SettingsError(
            f"scaling.{name} is {workers} with scaling.gpus_per_worker="
            f"{scaling.gpus_per_worker:g}, and the cluster has {gpus:g} GPUs: lower one of them, "
            "or set scaling.gpu=false"
        )
    if scaling.gpu is None and math.isinf(gpus):
        raise SettingsError(
            "scaling.gpu is not set, and the cluster grows as it is asked to: set it to true or "
            "false"
        )
    gpu = gpus >= needed if scaling.gpu is None else scaling.gpu
    experiment.compute.check(torch.device("cuda" if gpu else "cpu"))
    return gpu


def check_cpus(experiment: Experiment) -> None:
    """Training and its loading tasks must fit together, or Ray Data would wait for ever.

    Raises:
        SettingsError: the cluster has too few CPUs.
    """
    scaling = experiment.scaling
    workers = scaling.fewest_workers
    loading = required_cpus(experiment.data, workers)
    needed = workers * scaling.cpus_per_worker + loading
    available = capacity().get("CPU", 0)
    if needed > available:
        raise SettingsError(
            f"{workers} workers need {needed:g} CPUs ({scaling.cpus_per_worker:g} each and "
            f"{loading:g} for loading data), and Ray has {available:g}: lower "
            "scaling.cpus_per_worker, data.loader_cpus or the number of workers"
        )
