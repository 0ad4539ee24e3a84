"""Ray Tune's schedulers, which stop bad trials early and learn of the trials of earlier starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune import schedulers

from qdmr_ray.config import Experiment
from qdmr_ray.evaluate.sweep_file import TrialRecord
from qdmr_ray.sweeps.plan import ASHA
from qdmr_ray.sweeps.trial import ITERATION, VALUE
from qdmr_ray.sweeps.trials import Trials


@dataclass(eq=False)
class PastTrial:
    """A trial of an earlier start of the sweep, as Tune's schedulers see it."""

    trial_id: str
    status: str = "TERMINATED"


def stopping_scheduler(trials: Trials, experiment: Experiment) -> schedulers.TrialScheduler:
    """Returns the scheduler that the sweep's ``stopping`` asks for, with all ended trials told."""
    plan, stopping = trials.plan, trials.plan.settings.stopping
    if stopping is None:
        return schedulers.FIFOScheduler()
    common: Any = {"time_attr": ITERATION, "metric": VALUE, "mode": plan.settings.modes[0]}
    common["grace_period"] = stopping.grace
    ended = [r for r in trials.records.values() if r.has_ended and not r.is_repeat]
    if stopping.rule == ASHA:
        stage, _ = plan.stage_metrics(experiment)[0]
        asha = schedulers.AsyncHyperBandScheduler(
            **common,
            # A trial ends by itself, when its result is stored.
            max_t=max(experiment.stage(stage).iterations, stopping.grace) + 1,
            reduction_factor=stopping.reduction,
        )
        _replay(asha, asha.on_trial_result, ended)
        return asha
    median = schedulers.MedianStoppingRule(**common, min_samples_required=stopping.least_trials)
    # Its on_trial_result, now knowing more trials, refuses a later result of one it would now stop.
    _replay(median, median.on_trial_complete, ended)
    return median


def _replay(
    scheduler: schedulers.TrialScheduler,
    tell: Callable[[Any, Any, dict[str, Any]], Any],
    ended: Sequence[TrialRecord],
) -> None:
    """Tells the scheduler the measurements of trials that ended in earlier starts of this sweep."""
    # The part of Tune's controller that a scheduler uses: no trial could be paused or stopped.
    controller: Any = SimpleNamespace(get_live_trials=list)
    lines = []
    for record in ended:
        trial: Any = PastTrial(f"past-{record.id}")
        scheduler.on_trial_add(controller, trial)
        lines += [(line, trial) for line in record.history if line.values[0] is not None]
    for line, trial in sorted(lines, key=lambda pair: pair[0].iteration):
        tell(controller, trial, {ITERATION: line.iteration, VALUE: line.values[0]})
