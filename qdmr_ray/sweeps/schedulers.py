"""Ray Tune's schedulers, which stop bad trials early and learn of the trials of earlier starts."""

from __future__ import annotations

from typing import Any, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from qdmr_ray.config import Experiment
from qdmr_ray.evaluate.sweep_file import TrialRecord
from qdmr_ray.sweeps.plan import ASHA
from qdmr_ray.sweeps.trial import ITERATION, VALUE
from qdmr_ray.sweeps.trials import Trials


def stopping_scheduler(trials: Trials, experiment: Experiment) -> TrialScheduler:
    """Returns the scheduler that the sweep's ``stopping`` asks for, with all ended trials told."""
    plan, stopping = trials.plan, trials.plan.settings.stopping
    if stopping is None:
        return FIFOScheduler()
    common: Any = {"time_attr": ITERATION, "metric": VALUE, "mode": plan.settings.modes[0]}
    common["grace_period"] = stopping.grace
    scheduler: TrialScheduler
    if stopping.rule == ASHA:
        stage, _ = plan.stage_metrics(experiment)[0]
        scheduler = AsyncHyperBandScheduler(
            **common,
            # A trial ends by itself, when its result is stored.
            max_t=max(experiment.stage(stage).iterations, stopping.grace) + 1,
            reduction_factor=stopping.reduction,
        )
    else:
        scheduler = MedianStoppingRule(**common, min_samples_required=stopping.least_trials)
    _replay(scheduler, [r for r in trials.records.values() if r.has_ended and not r.is_repeat])
    return scheduler


def _replay(scheduler: TrialScheduler, ended: list[TrialRecord]) -> None:
    """Tells the scheduler the measurements of trials that ended in earlier starts of this sweep."""
    past = [(record, cast(Trial, PastTrial(record.id))) for record in ended]
    controller: Any = PastController()
    for _, trial in past:
        scheduler.on_trial_add(controller, trial)
    lines = [(line, trial) for record, trial in past for line in record.history]
    for line, trial in sorted(lines, key=lambda pair: pair[0].iteration):
        if line.values[0] is not None:
            result = {ITERATION: line.iteration, VALUE: line.values[0]}
            scheduler.on_trial_result(controller, trial, result)


class PastController:
    """Tune's controller, as a scheduler sees it while it is told of past trials."""

    def get_live_trials(self) -> list[Trial]:
        """Returns the trials that could still be paused or stopped: none."""
        return []


class PastTrial:
    """A trial of an earlier start, as a scheduler sees it."""

    def __init__(self, name: str) -> None:
        self.trial_id = f"past-{name}"
        self.status = "TERMINATED"
