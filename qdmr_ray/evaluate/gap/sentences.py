"""The gap in sentences, which commands print and reports show."""

from qdmr_ray.evaluate.codebook.usage import SOURCE, TARGET
from qdmr_ray.evaluate.gap.pairs import VQGAN
from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import PRIMARY, metric_info
from qdmr_ray.evaluate.names import S2T, label
from qdmr_ray.evaluate.results import CodeChoices, Evaluation, Gap, Statistics, StyleGap
from qdmr_ray.evaluate.spectrum import SPECTRUM
from qdmr_ray.evaluate.zones import ZONES


def gap_sentences(evaluation: Evaluation, *, codes: bool = True) -> list[str]:
    """Returns a sentence for each stage's gap, then for s2t images, codes and places in the field,
    as far as the evaluation knows them; none for an evaluation on the target lens alone. Where a
    table of the ``codes`` stands beside them, they can be left out."""
    gap = evaluation.gap
    if gap is None:
        return []
    found = [_stage(stage, evaluation, gap) for stage in evaluation.stages]
    found += [_style(gap.style)] if gap.style is not None else []
    found += [_codes(name, choices) for name, choices in gap.codes.items() if codes]
    found += [_gain(stage, gap) for stage in gap.zones.gain]
    return list(filter(None, found))


def _stage(stage: str, evaluation: Evaluation, gap: Gap) -> str:
    metric = metric_info(PRIMARY)
    difference = gap.difference.get(stage, {}).get(PRIMARY)
    own = gap.source_lens.get(stage, {}).get(PRIMARY)
    other = evaluation.stages[stage].get(PRIMARY)
    if difference is None or own is None or other is None:
        return ""
    return (
        f"{label(stage)}: {metric.label} {metric.plain(own.mean)} {metric.unit} on the source lens "
        f"and {metric.plain(other)} on the target lens, a gap of "
        f"{metric.plain(difference.mean, signed=True)}{_interval(metric, difference)}."
    )


def _interval(metric: MetricInfo, statistics: Statistics, factor: int = 1) -> str:
    """Returns the interval that holds ``factor``, 1 or -1, times the mean."""
    if statistics.ci95 is None:
        return ""
    low, high = sorted(factor * end for end in statistics.ci95)
    return f" (95 %: {metric.plain(low, signed=True)} to {metric.plain(high, signed=True)})"


def _style(style: StyleGap) -> str:
    """Returns whether s2t images are nearer to the target lens's pictures than the plain ones."""
    metric = metric_info(PRIMARY)
    change = style.change.get(PRIMARY)
    if change is None or change.mean is None:
        return ""
    pairs = [
        " instead of ".join(
            info.plain(found.mean if (found := rows.get(info.name)) else None)
            for rows in (style.statistics.get(S2T, {}), style.statistics.get(SOURCE, {}))
        )
        for info in (metric, SPECTRUM)
    ]
    factor, where = (1, "nearer to") if change.mean > 0 else (-1, "farther from")
    return (
        f"s2t images are {metric.plain(factor * change.mean)} {metric.unit}"
        f"{_interval(metric, change, factor)} {where} the target lens's pictures than the source "
        f"lens's are: {metric.label} {pairs[0]}, {SPECTRUM.label.lower()} {pairs[1]} "
        f"{SPECTRUM.unit}."
    )


def _codes(name: str, choices: CodeChoices) -> str:
    perplexity = [
        f"{choices.perplexity[domain]:.1f} ({domain})"
        for domain in (SOURCE, S2T, TARGET)
        if domain in choices.perplexity
    ]
    bits = [f"{value:.2f} ({domain})" for domain, value in choices.divergence_bits.items()]
    return (
        f"{'VQGAN' if name == VQGAN else label(name)}: perplexity of its {choices.codes} codes "
        f"{', '.join(perplexity)}; bits of divergence from the target's choices {', '.join(bits)}."
    )


def _gain(stage: str, gap: Gap) -> str:
    metric = metric_info(PRIMARY)
    rows = gap.zones.gain[stage]
    found = [(zone, known.mean) for zone in ZONES if (known := rows.get(zone)) is not None]
    if not found or gap.zones.baseline is None:
        return ""
    gains = ", ".join(f"{zone} {metric.plain(mean, signed=True)}" for zone, mean in found)
    return f"{label(stage)} over {label(gap.zones.baseline)} by field, {metric.unit}: {gains}."
