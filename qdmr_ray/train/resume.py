"""A stage's checkpoints as its ranks write them together and resume from them."""

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from qdmr_ray.config import Experiment
from qdmr_ray.errors import QdmrError
from qdmr_ray.models.layout import CHECKPOINTS_FOLDER
from qdmr_ray.models.stage_store import CLAIMS_FOLDER
from qdmr_ray.patience import REPORT
from qdmr_ray.stages import Stage
from qdmr_ray.storage import Location
from qdmr_ray.storage.claims import Claims
from qdmr_ray.train.checkpoints import CheckpointState, CheckpointStore
from qdmr_ray.train.logging.logbook import Logbook
from qdmr_ray.train.ranks import Ranks

if TYPE_CHECKING:
    from qdmr_ray.train.loop import Task


def check_claim(task: "Task", run: Location) -> None:
    """Raises QdmrError where another process has taken over the run from the task's driver."""
    if task.claim is not None:
        Claims(run.join(CLAIMS_FOLDER)).check(task.claim)


class Saver:
    """Saves and restores the stage of ``task``; every rank has one and calls it at the same time.
    Rank 0 writes, as the state is the same on all ranks."""

    def __init__(
        self, task: "Task", experiment: Experiment, run: Location, ranks: Ranks, logbook: Logbook
    ) -> None:
        self._task, self._ranks, self._logbook = task, ranks, logbook
        logging = experiment.logging
        self._store = CheckpointStore(
            run.join(task.stage, CHECKPOINTS_FOLDER),
            keep=logging.keep_checkpoints,
            best_metric=logging.best_metric,
            best_mode=cast(Literal["min", "max"], logging.best_mode),
            warn=logbook.warn,
            check=partial(check_claim, task, run),
        )
        self._reported = -math.inf

    def resume(self, stage: Stage) -> Mapping[str, float]:
        """Loads the newest checkpoint, if any, into ``stage``; returns the metrics that were logged
        last. Raises QdmrError if the checkpoint can't be read, or is of other settings or data."""
        # Every rank loads the same checkpoint: rank 0 looks for it.
        checkpoint = self._store.newest() if self._ranks.rank == 0 else None
        name = self._ranks.of_the_first(checkpoint.name if checkpoint else None)
        if name is None:
            return {}
        checkpoint = checkpoint or self._store.named(name)
        state = checkpoint.state
        if (state.stage, state.digest) != (self._task.stage, self._task.digest):
            raise QdmrError(
                f"{checkpoint.folder.uri}: was written with other settings or data; choose "
                "another --name, or take the change back"
            )
        stage.load_state_dict(checkpoint.load())
        return state.metrics

    def save(self, stage: Stage, metrics: Mapping[str, float]) -> bool:
        """Writes a checkpoint beside the training; returns whether to report it to Ray Train, which
        takes one report in ``patience.REPORT``; faster ones would wait in line. Raises QdmrError if
        the previous checkpoint could not be written."""
        now = time.monotonic()
        last = stage.iteration == stage.settings.iterations
        # A report is a call on all ranks: rank 0's clock decides for them.
        due = self._ranks.of_the_first(last or now - self._reported >= REPORT.seconds)
        if self._ranks.rank == 0:
            state = CheckpointState(
                iteration=stage.iteration,
                stage=self._task.stage,
                digest=self._task.digest,
                metrics=dict(metrics),
            )
            # The log is published first, so that a resumed run's log lacks no line.
            self._store.save(state, stage.state_dict(), before_complete=self._logbook.publish)
        if due:
            self._reported = now
        return due

    def wait(self) -> None:
        """Returns when everything saved is stored; raises QdmrError if it could not be written."""
        self._store.wait()
