"""The workers of an evaluation, one photograph at a time each, and what follows when one is lost.

    for row in Pool(partial(Restorer, task), [{"index": 0, "name": "a"}], spread).results():
        print(row["judged"], row["failure"])

A worker whose process ends is replaced, and its photograph is done again. An error of CUDA leaves a
process without its GPU, whatever the cause: a photograph that breaks a kernel, or a broken GPU.
Such a process is replaced, too, and its photograph is tried elsewhere: if it fails there as well,
that counts against the photograph. A worker whose next photograph fails, too, or that can't be set
up again, leaves; it keeps its GPU until the end, so that no worker that replaces another gets it.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from qdmr_ray.errors import QdmrError, reason
from qdmr_ray.restore.device import is_device_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray import ObjectRef
    from ray.actor import ActorHandle

    Row = dict[str, Any]

# The share of a CPU that Ray reserves for a worker, which mostly waits for its threads.
ACTOR_CPUS = 0.5
# Retries of a photograph whose worker was lost: one that exhausts memory would kill one worker
# after the other.
RETRIES = 3
# A GPU on which so many photographs, one after the other, were the first to fail is broken.
FAILED_IN_A_ROW = 2


class DeviceError(QdmrError):
    """A worker's GPU failed; the message names the node and the GPU."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """``workers`` restoring actors with ``gpus`` GPUs each, of which ``sharing`` share a node."""

    workers: int
    gpus: float
    sharing: int


def spread_over(
    nodes: Sequence[Mapping[str, Any]], workers: int | None, photographs: int
) -> Spread:
    """Spreads restoring actors over a cluster's ``nodes``, as ``ray.nodes()`` lists them;
    ``workers`` is the setting ``evaluation.workers``."""
    alive = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    gpus = int(sum(resources.get("GPU", 0) for resources in alive))
    # The head of a cluster on Kubernetes has no CPUs, so it restores nothing.
    needed, least = ("GPU", 1.0) if gpus else ("CPU", ACTOR_CPUS)
    useful = max(1, sum(resources.get(needed, 0) >= least for resources in alive))
    wanted = max(1, min(workers or gpus or useful, photographs))
    return Spread(
        workers=wanted,
        # More workers than GPUs share them: Ray would wait for ever for a whole GPU each.
        gpus=1 / math.ceil(wanted / gpus) if gpus else 0.0,
        sharing=math.ceil(wanted / useful),
    )


class RestoringWorker:
    """The actor: what ``make`` returns, made by a call of its own, whose errors Ray hands on as
    they are."""

    def __init__(self, make: Callable[[], Callable[[Row], Row]]) -> None:
        self._make = make

    def open(self) -> None:
        """Loads the networks; raises DeviceError where the GPU can't be used."""
        with self._naming_the_device():
            self._judge = self._make()

    def judge(self, row: Row) -> Row:
        """Returns the result for a photograph; raises DeviceError as :meth:`open`."""
        with self._naming_the_device():
            return self._judge(row)

    @contextmanager
    def _naming_the_device(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_device_error(error):
                raise
            gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
            device = f"GPU {', '.join(gpus)}" if gpus else "CPU"
            where = f"node {ray.util.get_node_ip_address()}, {device}"
            # Further lines are advice for who debugs a kernel.
            first, *_ = [*str(error).splitlines(), type(error).__name__]
            raise DeviceError(f"{where}: {first}") from None


@dataclass(eq=False)
class _Worker:
    """A worker, in whichever process it works now. ``row`` is its photograph, None while it is set
    up; its GPU failed on those in ``tried``, and on ``failed`` that had failed nowhere since it has
    finished one; ``lost`` counts the processes that ended before they were set up."""

    actor: ActorHandle | None = None
    row: Row | None = None
    tried: set[int] = field(default_factory=set)
    failed: int = 0
    lost: int = 0


class Pool:
    """Judges ``rows`` with what ``make`` returns in each worker."""

    def __init__(
        self, make: Callable[[], Callable[[Row], Row]], rows: Sequence[Row], spread: Spread
    ) -> None:
        self._make, self._spread = make, spread
        self._queue = deque(rows)
        self._tries: Counter[int] = Counter()
        self._idle: list[_Worker] = []
        self._busy: dict[ObjectRef, _Worker] = {}
        self._actors: list[ActorHandle] = []
        self._left: list[str] = []

    def results(self) -> Generator[Row]:
        """Yields the results as they come; those of photographs whose workers were lost too often
        are missing. The actors have ended when the generator is exhausted or closed. Raises
        QdmrError where a worker can't be set up, or none is left."""
        try:
            for _ in range(self._spread.workers):
                self._start(_Worker())
            while self._queue or any(worker.row for worker in self._busy.values()):
                self._hand_out()
                if not self._busy:
                    raise QdmrError(
                        f"no worker is left for {len(self._queue)} photographs "
                        f"({'; '.join(dict.fromkeys(self._left))}): what is done is kept; take "
                        "the GPU out of the cluster or mend it, and evaluate again"
                    )
                (done,), _ = ray.wait([*self._busy], num_returns=1)
                yield from self._result(done)
        finally:
            # Where Ray has been shut down, they have ended.
            for actor in self._actors if ray.is_initialized() else ():
                ray.kill(actor)

    def _start(self, worker: _Worker) -> None:
        """Starts a process for the worker, in place of the one that it has."""
        if worker.actor is not None:
            ray.kill(worker.actor)
        # By default Ray fills one node before the next, and all actors would share its CPUs.
        options = {"num_gpus": self._spread.gpus, "scheduling_strategy": "SPREAD"}
        make_actor = ray.remote(RestoringWorker).options(num_cpus=ACTOR_CPUS, **options)
        actor: ActorHandle = make_actor.remote(self._make)  # type: ignore[assignment]
        worker.actor = actor
        self._actors.append(actor)
        self._busy[actor.open.remote()] = worker

    def _hand_out(self) -> None:
        """Gives each idle worker a photograph that its GPU hasn't failed on; one such where nobody
        else is left who could try it."""
        for worker in [*self._idle]:
            row = next((r for r in self._queue if r["index"] not in worker.tried), None)
            if row is not None:
                self._give(worker, row)
        if self._queue and self._idle and not self._busy:
            self._give(self._idle[0], self._queue[0])

    def _give(self, worker: _Worker, row: Row) -> None:
        assert worker.actor is not None
        self._queue.remove(row)
        self._idle.remove(worker)
        worker.row = row
        self._busy[worker.actor.judge.remote(row)] = worker

    def _result(self, done: ObjectRef) -> Generator[Row]:
        worker = self._busy.pop(done)
        row, worker.row = worker.row, None
        try:
            found = ray.get(done)
        except RayTaskError as error:
            if not isinstance(error.cause, DeviceError):
                if isinstance(error.cause, QdmrError):
                    raise error.cause from None
                raise
            yield from self._broken(worker, row, error.cause)
        except RayError:
            self._lost(worker, row)
        else:
            self._idle.append(worker)
            worker.lost = 0
            if row is not None:
                worker.failed = 0
                yield found

    def _broken(self, worker: _Worker, row: Row | None, error: DeviceError) -> Generator[Row]:
        """Replaces a worker's process, or lets the worker leave, after an error of its GPU."""
        if row is not None:
            worker.tried.add(row["index"])
            worker.failed += self._tries[row["index"]] == 0
            if not self._again(row):
                yield {**row, "judged": "", "failure": reason(error)}
        if row is None or worker.failed >= FAILED_IN_A_ROW:
            self._left.append(str(error))
        else:
            self._start(worker)

    def _lost(self, worker: _Worker, row: Row | None) -> None:
        """Replaces a worker whose process has ended."""
        if row is not None:
            self._again(row)
        else:
            worker.lost += 1
        if worker.lost > RETRIES:
            self._left.append(f"a worker was lost {worker.lost} times while it was set up")
        else:
            self._start(worker)

    def _again(self, row: Row) -> bool:
        """Puts a photograph behind the others, unless it was tried too often."""
        self._tries[row["index"]] += 1
        if self._tries[row["index"]] > RETRIES:
            return False
        self._queue.append(row)
        return True
