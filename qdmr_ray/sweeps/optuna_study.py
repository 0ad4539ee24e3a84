"""The history that proposes a sweep's next trial, as an Optuna study. A proposal follows from the
finished trials, the number of the proposal and the seed alone: each proposal has a new sampler, so
that a killed sweep continues as it would have without the kill. The study lies in ``study.db``
(SQLite), which optuna-dashboard opens."""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median_low, mode
from typing import Any

import optuna
from optuna.trial import FixedTrial, TrialState, create_trial

from qdmr_ray.evaluate.sweep_file import FAILED, FINISHED, MAX, STOPPED, TrialRecord, Values
from qdmr_ray.sweeps.plan import GP, RANDOM, Plan
from qdmr_ray.sweeps.space import label

STUDY_FILE = "study.db"
# This attribute of a study's trial holds the sweep's id of the trial.
_ID = "trial"
_STATES = {FINISHED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna from logging every trial and every experimental option, until the block ends."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class Study:
    """An Optuna study of ``plan``'s space, rebuilt from ``records``; ``file`` is replaced."""

    def __init__(self, plan: Plan, records: Sequence[TrialRecord], file: Path) -> None:
        self._plan = plan
        self.file = file
        file.unlink(missing_ok=True)
        self.study = optuna.create_study(
            study_name=plan.settings.name,
            storage=f"sqlite:///{file}",
            directions=["maximize" if mode == MAX else "minimize" for mode in plan.settings.modes],
            sampler=optuna.samplers.RandomSampler(seed=plan.settings.seed),
        )
        self._trials: dict[str, optuna.Trial] = {}
        for record in records:
            self._add(record)

    def ask(self, name: str, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns settings for the trial called ``name``: ``wanted``, completed by the sampler."""
        if wanted:
            self.study.enqueue_trial({key: label(value) for key, value in wanted.items()})
        self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
        with warnings.catch_warnings():
            # Optuna warns of a choice that is a list, which the study holds as JSON text.
            warnings.simplefilter("ignore")
            trial = self.study.ask()
            settings = self._plan.space.sample(lambda parameter: parameter.suggest(trial))
        trial.set_user_attr(_ID, name)
        self._trials[name] = trial
        return settings

    def report(self, name: str, iteration: int, values: Values) -> None:
        """Adds an intermediate value of a trial; Optuna takes them for a single metric only."""
        trial, value = self._trials.get(name), values[0]
        if trial is not None and len(values) == 1 and value is not None:
            trial.report(value, iteration)

    def tell(self, record: TrialRecord) -> None:
        """Notes how a trial ended."""
        trial = self._trials.get(record.id)
        if trial is not None:
            state, values = _outcome(record)
            self.study.tell(trial, values=values, state=state)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        settings = self._plan.settings
        # The factor keeps the numbers of one sweep's seed apart from another's.
        seed = (settings.seed * 1_000_003 + number) % 2**32
        if settings.sampler == RANDOM:
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if settings.sampler == GP:
                # A parameter that varies under a condition is drawn at random by it.
                return optuna.samplers.GPSampler(
                    seed=seed,
                    n_startup_trials=settings.startup_trials,
                    independent_sampler=optuna.samplers.RandomSampler(seed=seed),
                    warn_independent_sampling=False,
                )
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=settings.startup_trials,
                # Parameters are drawn together (in groups where some trials lack some of them) and
                # away from the trials that are under way.
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _add(self, record: TrialRecord) -> None:
        parameters = self._plan.space.parameters
        # Only the baseline of an experiment that lies outside the space has no settings.
        if record.is_repeat or (parameters and not record.settings):
            return
        state, values = _outcome(record)
        measured: dict[int, float] = {}
        if len(self._plan.settings.metrics) == 1:
            firsts = {line.iteration: line.values[0] for line in record.history}
            measured = {at: value for at, value in firsts.items() if value is not None}
        with warnings.catch_warnings():
            # Optuna warns of a choice that is a list, which the study holds as JSON text.
            warnings.simplefilter("ignore")
            known = {name: v for name, v in record.settings.items() if name in parameters}
            fixed = FixedTrial({name: label(value) for name, value in known.items()})
            for name in known:
                parameters[name].suggest(fixed)
            past = create_trial(
                state=state,
                values=values,
                params=fixed.params,
                distributions=fixed.distributions,
                user_attrs={_ID: record.id},
                intermediate_values=measured,
            )
            self.study.add_trial(past)
        if state == TrialState.RUNNING:
            stored = self.study.get_trials(deepcopy=False)[-1]
            self._trials[record.id] = optuna.Trial(self.study, stored._trial_id)


def _outcome(record: TrialRecord) -> tuple[TrialState, list[float] | None]:
    """Returns Optuna's state and values of a trial; one without finite values counts as failed."""
    state = _STATES.get(record.state, TrialState.RUNNING)
    if state != TrialState.COMPLETE:
        return state, None
    values = [value for value in record.values or [] if value is not None]
    if not values or len(values) < len(record.values or []):
        return TrialState.FAIL, None
    return state, values


def importances(study: optuna.Study) -> dict[str, float]:
    """Returns the share of the first metric's variance that each parameter explains (fANOVA; Hutter
    et al., 2014), largest first; {} where the trials are too few or all alike.

    fANOVA looks at trials that have the same parameters. One that varies under a condition has its
    most frequent value, or its median, in the trials that don't meet the condition: there it
    explains nothing.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    distributions = {name: d for trial in trials for name, d in trial.distributions.items()}
    usual = {}
    for name, distribution in distributions.items():
        values = [trial.params[name] for trial in trials if name in trial.params]
        choices = isinstance(distribution, optuna.distributions.CategoricalDistribution)
        usual[name] = mode(values) if choices else median_low(values)
    complete = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    for trial in trials:
        params = usual | trial.params
        complete.add_trial(
            create_trial(values=trial.values[:1], params=params, distributions=distributions)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                complete, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
            )
        except (ValueError, RuntimeError):
            # The trials are too few, or all have the same value.
            return {}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
