"""The gap over all photographs of an evaluation, from what the workers measured of each."""

from collections.abc import Mapping, Sequence

import numpy as np

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook.usage import SOURCE, TARGET, divergence_bits, perplexity
from qdmr_ray.evaluate.journal import RESULTS_FILE
from qdmr_ray.evaluate.metrics.metric import json_value
from qdmr_ray.evaluate.names import INPUT, S2T
from qdmr_ray.evaluate.results import (
    CodeChoices,
    Gap,
    ImageValues,
    Judged,
    JudgedGap,
    PhotographGap,
    StyleGap,
    Values,
    ZoneGains,
)
from qdmr_ray.evaluate.spectrum import band_frequencies
from qdmr_ray.evaluate.statistics import statistics_table

# The stage that the others are compared with, place by place: it never saw the target.
BASELINE = "source_only"
# In the order in which results and pages show them.
DOMAINS = (SOURCE, S2T, TARGET)


def summarize_gap(rows: Sequence[Judged], stages: Sequence[str]) -> Gap:
    """Builds the gap of the photographs in ``rows`` that were taken through both lenses."""
    known = [(row, row.gap) for row in rows if row.gap is not None]
    gaps = [gap for _, gap in known]
    names = [INPUT, *stages]
    differences = [
        {name: _minus(gap.source_lens.get(name, {}), row.values.get(name, {})) for name in names}
        for row, gap in known
    ]
    return Gap(
        source_lens=statistics_table([gap.source_lens for gap in gaps], names),
        difference=statistics_table(differences, names),
        zones=_zones([gap.zones for gap in gaps], stages),
        style=_style(gaps),
        codes=_codes(gaps),
        per_image=tuple(
            PhotographGap(name=g.name, source_lens=g.source_lens, zones=g.zones, style=g.style)
            for g in gaps
        ),
    )


def _minus(first: Values, second: Values) -> Values:
    """Returns the difference of the metrics that both have; null where one of them is null."""
    return {
        metric: None if (a := first[metric]) is None or (b := second[metric]) is None else a - b
        for metric in first
        if metric in second
    }


def _zones(zones: Sequence[ImageValues], stages: Sequence[str]) -> ZoneGains:
    psnr = statistics_table(zones, [INPUT, *stages])
    if BASELINE not in stages:
        return ZoneGains(psnr=psnr)
    others = [stage for stage in stages if stage != BASELINE]
    gains = [
        {stage: _minus(row.get(stage, {}), row.get(BASELINE, {})) for stage in others}
        for row in zones
    ]
    return ZoneGains(psnr=psnr, baseline=BASELINE, gain=statistics_table(gains, others))


def _style(gaps: Sequence[JudgedGap]) -> StyleGap | None:
    if not any(gap.style for gap in gaps):
        return None
    changes = [{S2T: _minus(g.style.get(S2T, {}), g.style.get(SOURCE, {}))} for g in gaps]
    return StyleGap(
        statistics=statistics_table([gap.style for gap in gaps], DOMAINS),
        change=statistics_table(changes, [S2T])[S2T],
        frequencies=tuple(band_frequencies()),
        spectra_db={
            kind: _mean_spectrum([gap.spectra_db[kind] for gap in gaps if kind in gap.spectra_db])
            for kind in DOMAINS
        },
    )


def _mean_spectrum(spectra: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    bands = [[v for v in band if v is not None] for band in zip(*spectra, strict=True)]
    return tuple(json_value(float(np.mean(band))) if band else None for band in bands)


def _codes(gaps: Sequence[JudgedGap]) -> dict[str, CodeChoices]:
    """Sums each network's choices over the photographs; raises QdmrError where the journal's rows
    were counted with codebooks of unlike sizes."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for gap in gaps:
        for name, by_domain in gap.counts.items():
            sums = found.setdefault(name, {})
            for domain, counts in by_domain.items():
                before = sums.get(domain)
                if before is not None and len(before) != len(counts):
                    raise QdmrError(
                        f"{RESULTS_FILE}: {gap.name}: {name} has {len(counts)} codes, others have "
                        f"{len(before)}: the file is damaged; delete it and evaluate again"
                    )
                sums[domain] = np.asarray(counts) if before is None else before + counts
    return {name: _choices(sums) for name, sums in found.items() if TARGET in sums}


def _choices(counts: Mapping[str, np.ndarray]) -> CodeChoices:
    frequencies = {d: counts[d] / counts[d].sum() for d in DOMAINS if d in counts}
    target = frequencies[TARGET]
    return CodeChoices(
        codes=len(target),
        perplexity={domain: perplexity(of) for domain, of in frequencies.items()},
        used={domain: int((of > 0).sum()) for domain, of in frequencies.items()},
        divergence_bits={
            domain: divergence_bits(of, target)
            for domain, of in frequencies.items()
            if domain != TARGET
        },
    )
