"""The line that tells, every few seconds, where a sweep is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.sweep_file import RUNNING, TrialRecord
from qdmr_ray.models.position import position
from qdmr_ray.patience import PROGRESS_LINE
from qdmr_ray.sweeps.trials import Trials


@contextmanager
def telling(trials: Trials, tell: Callable[[str], None] | None) -> Iterator[None]:
    """Gives ``tell`` a line now and then, until the block ends."""
    over = threading.Event()

    def run() -> None:
        assert tell is not None
        while not over.wait(PROGRESS_LINE.seconds):
            tell(status_line(trials))

    thread = threading.Thread(target=run, daemon=True, name="sweep-status")
    if tell is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if tell is not None:
            thread.join()


def status_line(trials: Trials) -> str:
    """Returns ``2 of 16 trials ended, 95 s; 0002 uda 40/90, 0003 vqgan 100/300``."""
    records = sorted(trials.records.values(), key=lambda record: record.id)
    ended = sum(record.has_ended for record in records)
    running = [_running(trials, record) for record in records if record.state == RUNNING]
    line = f"{ended} of {trials.total} trials ended, {trials.seconds():.0f} s"
    return f"{line}; {', '.join(running)}" if running else line


def _running(trials: Trials, record: TrialRecord) -> str:
    experiment = trials.plan.experiment(record.settings, name=record.id, seed=record.seed)
    run = trials.sweep.join(record.run)
    name = f"{record.id} ({record.name})" if record.name else record.id
    try:
        found = position(run, experiment.run, experiment.open)
    except QdmrError:
        # A store that doesn't answer now is not what this line is about.
        found = None
    if found is None:
        return f"{name} waiting"
    iteration = found.line.iteration if found.line else 0
    return f"{name} {found.stage} {iteration}/{experiment.stage(found.stage).iterations}"
