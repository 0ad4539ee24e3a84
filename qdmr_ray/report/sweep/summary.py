"""The key numbers of a sweep's report: headline and tiles."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from qdmr_ray.evaluate.sweep_file import RUNNING, SweepFile
from qdmr_ray.report.document import duration
from qdmr_ray.report.summary import change, gain_texts, with_unit
from qdmr_ray.report.sweep.data import FINISHED, STATE_LABELS, STOPPED, Sweep, Trial, setting_text


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A key number; ``gain`` is against the baseline, its ``verdict`` ``better`` or ``worse``."""

    label: str
    value: str
    unit: str = ""
    gain: str | None = None
    verdict: str = ""
    note: str = ""


def headline(sweep: Sweep) -> str:
    """Returns the sweep in a sentence or two, whether it found something or not."""
    trials = sweep.searched
    count = counted(len(trials), "variant" if sweep.is_ablation else "trial")
    if not any(sweep.counts(trial) and None not in trial.values for trial in trials):
        states = state_counts(trials)
        return f"No trial has a result{f': {states}' if states else ': there are no trials'}."
    if len(sweep.objectives) > 1:
        *names, last = [objective.label for objective in sweep.objectives]
        metrics = f"{', '.join(names)} and {last}"
        on_front = f"{len(sweep.front)} of {count} {'is' if len(sweep.front) == 1 else 'are'}"
        return f"{on_front} on the Pareto front of {metrics}."
    objective, best = sweep.objectives[0], sweep.best
    if best is None:
        return f"{count[:1].upper()}{count[1:]}; none has been called the best yet."
    value = result(sweep, best, 0)
    reached = f"{best.title} reaches {objective.label} {with_unit(objective, value)}"
    own = reference(sweep)
    if own is None:
        return f"The best of {count}: {reached}."
    named = own.label if sweep.is_ablation else "the experiment's own settings"
    if own is best:
        return f"The best of {count} is {named}: {reached}."
    gain = change(result(sweep, own, 0), value)
    if gain is None:
        return f"The best of {count}: {reached}; there is no value of {named} to compare with."
    difference = with_unit(objective, gain, signed=True)
    return f"The best of {count}: {reached}, {difference} against {named}."


def tiles(sweep: Sweep) -> list[Tile]:
    """Returns trials by state, best and baseline of each objective, stages trained and time."""
    own, content = reference(sweep), sweep.content
    repeated = len(sweep.trials) - len(sweep.searched)
    note = f"; and {counted(repeated, 'repeat')} with other seeds" if repeated else ""
    shown = [
        Tile(
            label="Variants" if sweep.is_ablation else "Trials",
            value=str(len(sweep.searched)),
            note=f"{state_counts(sweep.searched)}{note}",
        )
    ]
    for index in range(len(sweep.objectives)):
        best = champion(sweep, index)
        if best is not None:
            shown.append(_value_tile(sweep, "Best", index, best, own))
        # With several objectives, the gains make the baseline's own tiles superfluous.
        if own is not None and own is not best and len(sweep.objectives) == 1:
            name = "First" if own is not sweep.baseline else "Baseline"
            shown.append(_value_tile(sweep, name, index, own))
    if any(content.stages_trained.values()):
        note = ", ".join(f"{count} {name}" for name, count in content.stages_trained.items())
        # Ended trials took the others from the shared store.
        ended = [trial for trial in sweep.trials if trial.state in (FINISHED, STOPPED)]
        taken = sum(stage not in trial.trained for trial in ended for stage in trial.stages)
        if taken:
            note += f"; {counted(taken, 'stage')} taken from the store instead of training"
        trained = str(sum(content.stages_trained.values()))
        shown.append(Tile(label="Stages trained", value=trained, note=note))
    if content.seconds is not None:
        together = sum(trial.seconds for trial in sweep.trials)
        note = f"the trials took {duration(together)} together" if together else ""
        shown.append(Tile(label="Time", value=duration(content.seconds), note=note))
    return shown


def facts(sweep: Sweep) -> list[tuple[str, str]]:
    """Returns the line under the title."""
    directions = {1: "maximised", -1: "minimised"}
    metrics = "; ".join(
        f"{metric.name}, {directions[metric.better]}" for metric in sweep.objectives
    )
    rule, stopping = sweep.content.stopping, ""
    if rule:
        stopping = f"{rule.rule}, grace {rule.grace}, reduction {setting_text(rule.reduction)}"
    known = {
        "State": _state(sweep.content),
        "Metrics" if len(sweep.objectives) > 1 else "Metric": metrics,
        "Sampler": sweep.content.sampler,
        "Early stopping": stopping,
        "Code": sweep.content.code_version,
    }
    return [(name, text) for name, text in known.items() if text]


def _state(content: SweepFile) -> str:
    """Returns what a sweep that hasn't reached its end has done so far; nothing of one that has."""
    if content.state == FINISHED:
        return ""
    ended = sum(trial.has_ended for trial in content.trials if not trial.is_repeat)
    done = f"{ended} of {content.planned or 'as yet uncounted'} trials have ended"
    when = ""
    if content.updated is not None:
        when = datetime.fromtimestamp(content.updated, UTC).strftime(" at %Y-%m-%d %H:%M UTC")
    if content.state == RUNNING:
        return f"running; {done}{when}"
    reason = f" ({content.error})" if content.error else ""
    return f"{content.state}{when}{reason}; {done}, and the same command goes on"


def reference(sweep: Sweep) -> Trial | None:
    """Returns what others are compared with: the baseline, or an ablation's first variant."""
    if sweep.baseline is None and sweep.is_ablation and sweep.searched:
        return sweep.searched[0]
    return sweep.baseline


def champion(sweep: Sweep, index: int) -> Trial | None:
    """Returns the trial that is best in one objective."""
    if len(sweep.objectives) == 1:
        return sweep.best
    better = sweep.objectives[index].better
    known = [t for t in filter(sweep.counts, sweep.searched) if t.values[index] is not None]
    return max(known, key=lambda trial: (trial.values[index] or 0.0) * better, default=None)


def result(sweep: Sweep, trial: Trial, index: int) -> float | None:
    """Returns what judges a trial: its value, or a variant's mean over its seeds."""
    mean = sweep.spread(trial, index).mean if sweep.is_ablation else None
    return trial.values[index] if mean is None else mean


def state_counts(trials: list[Trial]) -> str:
    """Returns ``31 finished, 8 stopped early, 1 failed``."""
    counts = Counter(trial.state for trial in trials)
    order = [*STATE_LABELS, *(state for state in counts if state not in STATE_LABELS)]
    return ", ".join(f"{counts[s]} {STATE_LABELS.get(s, s)}" for s in order if counts[s])


def counted(count: int, noun: str) -> str:
    """Returns ``1 trial`` or ``40 trials``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _value_tile(
    sweep: Sweep, role: str, index: int, trial: Trial, own: Trial | None = None
) -> Tile:
    objective, value = sweep.objectives[index], result(sweep, trial, index)
    gain = None if own in (None, trial) else change(result(sweep, own, index), value)
    spread = sweep.spread(trial, index)
    seeds = f"; {spread.text(objective)} over {spread.seeds} seeds"
    against = "" if own is None or gain is None else f" against {own.name or 'the baseline'}"
    return Tile(
        label=f"{role}: {trial.name or trial.title}",
        value=objective.text(value),
        unit=objective.unit,
        note=f"{objective.label}{against}{seeds if spread.seeds > 1 else ''}",
        **gain_texts(objective, gain),
    )
