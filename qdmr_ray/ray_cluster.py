"""Joining or starting Ray, and checks of its resources: the same rule for every command.

ensure_ray()                     # the cluster at RAY_ADDRESS, else a Ray of this command's own
check_cpus(experiment)
gpu = uses_gpu(experiment)
"""

import importlib
import logging
import math
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import ray
import torch

from qdmr_ray.config import Experiment
from qdmr_ray.data.streaming.stream import required_cpus
from qdmr_ray.errors import VERBOSE_VARIABLE, QdmrError, SettingsError

# A worker needs one, and Ray Data another.
SMALLEST_LOCAL_CPUS = 2
# The head of a cluster with an autoscaler offers this resource.
AUTOSCALING = "autoscaling"
# A local Ray is started so often at most; Ray's error has this text if it wasn't there in time.
_STARTS = 3
_TOO_SLOW = "timed out during startup"
# As many as Ray's own tokens have.
_TOKEN_BYTES = 32

# A user's own environment overrides these settings of Ray.
_EVERYWHERE = {
    # An experiment must not phone home from a cluster whose owner wasn't asked.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers' prints reach the driver once, through Ray's log forwarding.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
# This fills the dashboard's page of training runs.
_ON_A_CLUSTER = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
_LOCALLY = {
    # There is no dashboard whose page of training runs could be filled.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Ray runs workers at nice 15: on a busy machine, training would wait for it at every barrier.
    "RAY_worker_niceness": "0",
    # By default Ray frees unused objects once a second; crops go faster than that.
    "RAY_free_objects_period_milliseconds": "100",
    # Ray Train looks at its workers more often, and so notices their end and their loss sooner.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Nobody drains the only node; this saves a process that takes 1.5 s of a CPU to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# The core's error level reports an actor option that Ray Data and Ray Train choose themselves
# (ray-project/ray #53727).
_QUIETLY = {"RAY_BACKEND_LOG_LEVEL": "fatal"}


def ensure_ray(modules: Iterable[str] = ()) -> None:
    """Joins the cluster that ``RAY_ADDRESS`` names, or starts an embedded local Ray; does nothing
    where this process has Ray already. ``modules`` names the user's modules that workers import
    (stages and networks from outside): their packages are sent to a cluster's nodes; workers of a
    local Ray find them where this process does. Raises QdmrError where the cluster can't be
    reached."""
    if ray.is_initialized():
        return
    verbose = bool(os.environ.get(VERBOSE_VARIABLE))
    variables = _EVERYWHERE | (_ON_A_CLUSTER if joins_a_cluster() else _LOCALLY)
    for name, value in (variables if verbose else variables | _QUIETLY).items():
        os.environ.setdefault(name, value)
    if not verbose:
        # Everything a user must know arrives as an error, and the progress bar stays in one piece.
        for name in ("ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "log_to_driver": verbose,
        "runtime_env": outside_code(modules),
    }
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address, **options)
            # The import is late because most commands start a Ray of their own.
            from qdmr_ray.ray_compat import start_data_actors_here

            start_data_actors_here()
        else:
            _start(options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        hint = ""
        if address and os.environ.get("RAY_AUTH_MODE") != "token":
            hint = " (where the cluster asks for a token, set RAY_AUTH_MODE=token)"
        raise QdmrError(f"{where} can't be used: {' '.join(str(error).split())}{hint}") from error


def outside_code(modules: Iterable[str]) -> dict[str, Any]:
    """Returns the runtime environment that sends ``modules``' packages to a cluster's nodes."""
    if not joins_a_cluster():
        return {}
    packages = [importlib.import_module(name) for name in {m.partition(".")[0] for m in modules}]
    paths = [str(Path(package.__file__ or "")) for package in packages]
    folders = [str(Path(p).parent) if Path(p).name == "__init__.py" else p for p in paths]
    return {"py_modules": sorted(folders)} if folders else {}


def keep_token_private() -> None:
    """Makes Ray's token readable for this user alone, whoever wrote the file. For a local Ray, Ray
    (2.60) itself makes one that mostly everybody may read, as the umask says; but whoever has the
    token runs code as this user, since Ray's ports are open to all users of the machine."""
    names = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    needed = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    # Without a home that can be written, Ray's own error says so.
    with suppress(OSError, RuntimeError):
        file = Path.home() / ".ray" / "auth_token"
        if needed and not names & os.environ.keys() and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            # A temporary file has no other readers. The link makes the token whole at once, and
            # never replaces that of a command that begins at the same time.
            with NamedTemporaryFile("w", dir=file.parent) as new:
                new.write(secrets.token_hex(_TOKEN_BYTES))
                new.flush()
                os.link(new.name, file)
        file.chmod(0o600)


def _start(options: dict[str, Any]) -> None:
    keep_token_private()
    cpus = max(SMALLEST_LOCAL_CPUS, os.cpu_count() or 1)
    for attempts_left in reversed(range(_STARTS)):
        try:
            # Without an address Ray joins the cluster started last on this machine: that of another
            # command, which takes it along when it ends.
            ray.init("local", num_cpus=cpus, include_dashboard=False, **options)
            return
        except Exception as error:
            # Ray raises nothing narrower where the machine was too busy for Ray's own fixed limits:
            # a node has 30 s to start, and each agent of it 15 s.
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            if not attempts_left:
                raise RuntimeError(f"this machine is too busy to start it: {error}") from error


def joins_a_cluster() -> bool:
    """Returns whether commands join an existing cluster instead of starting a Ray of their own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def capacity() -> dict[str, float]:
    """Returns the cluster's resources, with infinite CPUs and GPUs where it grows on demand. Ray
    (2.60) doesn't tell how far its autoscaler goes, not even that there is one. The head of a
    cluster with an autoscaler therefore offers the resource ``autoscaling`` (as ``cluster/`` does);
    and a cluster without any CPU can only be about to grow."""
    now: dict[str, float] = ray.cluster_resources()
    if now.get(AUTOSCALING) or not now.get("CPU"):
        return {**now, "CPU": math.inf, "GPU": math.inf}
    return now


def uses_gpu(experiment: Experiment) -> bool:
    """Returns whether the workers train on GPUs: as ``scaling.gpu`` says, else if there are enough.
    Raises SettingsError if GPUs are asked for and the cluster has fewer, or a setting needs one."""
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
    """Checks that training and a loading task fit together; Ray Data would wait for ever. Raises
    SettingsError if the cluster has too few CPUs."""
    scaling = experiment.scaling
    workers = scaling.fewest_workers
    loading = required_cpus(experiment.data)
    needed = workers * scaling.cpus_per_worker + loading
    available = capacity().get("CPU", 0)
    if needed > available:
        raise SettingsError(
            f"{workers} workers need {needed:g} CPUs ({scaling.cpus_per_worker:g} each and "
            f"{loading:g} for loading data), and Ray has {available:g}: lower "
            "scaling.cpus_per_worker, data.loader_cpus or the number of workers"
        )
