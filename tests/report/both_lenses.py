"""An evaluation of made-up photographs that both lenses took."""

from __future__ import annotations

from typing import Any

from qdmr_ray.evaluate.gap.summary import summarize_gap
from qdmr_ray.evaluate.results import Judged
from qdmr_ray.evaluate.spectrum import BANDS

STAGES = ("source_only", "base", "uda")


def judged(index: int, name: str) -> Judged:
    """PSNR on the target lens falls from the middle to the corners; the source lens is 3 dB
    better, s2t images 2 dB nearer to the target lens than the source's are."""
    level = 20.0 + index
    gains = {"input": 0.0, "source_only": 2.0, "base": 3.0, "uda": 4.0}
    target = {kind: {"psnr": level + gain, "ssim": 0.7} for kind, gain in gains.items()}
    source = {kind: {"psnr": level + gain + 3.0, "ssim": 0.8} for kind, gain in gains.items()}
    zones = {
        kind: {"centre": level + gain + 1, "middle": level + gain, "corner": level + 2 * gain - 5}
        for kind, gain in gains.items()
    }
    style = {
        "source": {"psnr": 28.0 + index, "ssim": 0.90, "spectrum": 3.0},
        "s2t": {"psnr": 30.0 + index, "ssim": 0.92, "spectrum": 1.5},
        "target": {"psnr": 33.0 + index, "ssim": 0.95, "spectrum": 1.0},
    }
    counts = {"source": (5, 9, 1, 1), "s2t": (5, 1, 1, 1), "target": (5, 0, 0, 0)}
    gap: dict[str, Any] = {
        "name": name,
        "source_lens": source,
        "zones": zones,
        "style": style,
        "spectra_db": {
            kind: tuple(-step * band for band in range(BANDS))
            for kind, step in (("source", 0.5), ("s2t", 0.2), ("target", 0.1))
        },
        "counts": {"vqgan": counts, "uda": counts},
    }
    return Judged.model_validate({"index": index, "name": name, "values": target, "gap": gap})


def both_lenses(names: tuple[str, ...]) -> dict[str, Any]:
    """What evaluation.json holds as ``gap`` of photographs with these names."""
    rows = [judged(index, name) for index, name in enumerate(names)]
    return summarize_gap(rows, STAGES).model_dump(mode="json")
