"""Measures what Ray and Tune add to a trial of a finished sweep.

    python tests/benchmarks/sweep_overhead.py SWEEP_FOLDER

For each trial that took its VQGAN from the store and ended with a result, the overhead is the time
from the moment that Tune was given it to its end, less the time that its training loop counted in
metrics.jsonl (steps, waiting for data, logs, validation, pictures, checkpoints).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from qdmr_ray.evaluate.sweep_file import FINISHED, SWEEP_FILE, SweepFile
from qdmr_ray.storage import open_location


def loop_seconds(metrics: Path) -> float:
    """Returns the seconds of all phases of the loop together."""
    total, before = 0.0, 0
    for text in metrics.read_text().splitlines():
        line = json.loads(text)
        each = sum(value for name, value in line.items() if name.startswith("time/"))
        total += each * (line["iteration"] - before)
        before = line["iteration"]
    return total


def main() -> None:
    sweep = Path(sys.argv[1])
    rows = []
    for trial in SweepFile.read(open_location(sweep).join(SWEEP_FILE)).trials:
        if trial.state == FINISHED and len(trial.trained) == 1:
            (stage,) = trial.trained
            inside = loop_seconds(sweep / trial.run / stage / "metrics.jsonl")
            rows.append(trial.seconds - inside)
            print(f"{trial.id}  {trial.seconds:7.1f} s  loop {inside:7.1f} s  {rows[-1]:5.1f} s")
    print(f"median of {len(rows)} trials: {median(rows):.1f} s; largest {max(rows):.1f} s")


if __name__ == "__main__":
    main()
