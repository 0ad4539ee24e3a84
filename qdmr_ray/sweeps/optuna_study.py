"""The history that proposes a sweep's next trial, as an Optuna study.

What is proposed follows from the finished trials, the number of the proposal and the seed alone:
the sampler is made anew for each proposal, so that a sweep that was killed goes on as it would
have. The study lies in ``study.db`` (SQLite), which optuna-dashboard opens.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from qdmr_ray.sweeps.plan import RANDOM, Plan
from qdmr_ray.sweeps.record import FAILED, FINISHED, STOPPED, Record
from qdmr_ray.sweeps.space import label

STUDY_FILE = "study.db"
# In the study, which of the sweep's trials it is.
_ID = "trial"
_STATES = {FINISHED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL}


class Study:
    """An Optuna study of ``plan``'s space, rebuilt from ``records``; ``file`` is replaced."""

    def __init__(self, plan: Plan, records: Sequence[Record], file: Path) -> None:
        # Optuna says every trial and every experimental option aloud.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self._plan = plan
        self.file = file
        file.unlink(missing_ok=True)
        self.study = optuna.create_study(
            study_name=plan.settings.name,
            storage=f"sqlite:///{file}",
            directions=[
                "maximize" if mode == "max" else "minimize" for mode in plan.settings.modes
            ],
            sampler=optuna.samplers.RandomSampler(seed=plan.settings.seed),
        )
        self._trials: dict[str, optuna.Trial] = {}
        for record in records:
            self._add(record)

    def ask(self, name: str, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Settings for the trial called ``name``: ``wanted``, completed by the sampler."""
        if wanted:
            self.study.enqueue_trial({key: label(value) for key, value in wanted.items()})
        self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
        with warnings.catch_warnings():
            # A list among the choices stands there as JSON text; that is known.
            warnings.simplefilter("ignore")
            trial = self.study.ask()
            settings = self._plan.space.sample(lambda parameter: parameter.suggest(trial))
        trial.set_user_attr(_ID, name)
        self._trials[name] = trial
        return settings

    def report(self, name: str, iteration: int, values: Sequence[float | None]) -> None:
        """Notes a value on the way of a trial that has one metric."""
        trial, value = self._trials.get(name), values[0]
        if trial is not None and len(values) == 1 and value is not None:
            with warnings.catch_warnings():
                # A trial that goes on after a kill tells some iterations again.
                warnings.simplefilter("ignore")
                trial.report(value, iteration)

    def tell(self, record: Record) -> None:
        """Notes how a trial ended."""
        trial = self._trials.get(record.id)
        if trial is None:
            return
        state = _STATES[record.state]
        values = _finite(record.values) if state == TrialState.COMPLETE else None
        if state == TrialState.COMPLETE and values is None:
            state = TrialState.FAIL
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.tell(trial, values=values, state=state)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        settings = self._plan.settings
        # Numbers of two seeds must not meet.
        seed = (settings.seed * 1_000_003 + number) % 2**32
        if settings.sampler == RANDOM:
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=settings.startup_trials,
                # Parameters are drawn together, in groups where some apply to a part only, and
                # away from the trials that are under way.
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _add(self, record: Record) -> None:
        if record.is_repeat or record.settings is None:
            return
        parameters = self._plan.space.parameters
        if not record.settings and parameters:
            return  # a baseline that lies outside of the space
        known = {name: value for name, value in record.settings.items() if name in parameters}
        state = _STATES.get(record.state, TrialState.RUNNING)
        values = _finite(record.values) if state == TrialState.COMPLETE else None
        if state == TrialState.COMPLETE and values is None:
            state = TrialState.FAIL
        single = len(self._plan.settings.metrics) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.add_trial(
                create_trial(
                    state=state,
                    values=values,
                    params={name: label(value) for name, value in known.items()},
                    distributions={name: parameters[name].distribution() for name in known},
                    user_attrs={_ID: record.id},
                    intermediate_values={
                        line["iteration"]: line["values"][0]
                        for line in record.history
                        if single and line["values"][0] is not None
                    },
                )
            )
        if state == TrialState.RUNNING:
            number = len(self.study.get_trials(deepcopy=False)) - 1
            stored = self.study.get_trials(deepcopy=False)[number]
            self._trials[record.id] = optuna.Trial(self.study, stored._trial_id)


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the first metric's variance each parameter explains (fANOVA), most first; {}
    where the trials don't say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                target=lambda trial: trial.values[0],
            )
        except (ValueError, RuntimeError):
            # Too few trials, or all with the same value.
            return {}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _finite(values: Sequence[float | None] | None) -> list[float] | None:
    if values is None or any(value is None or not math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values if value is not None]
