"""What Ray and Tune add to a trial: python tests/benchmarks/sweep_overhead.py SWEEP_FOLDER

For each trial that took its VQGAN from the store and ended with a result: the seconds from the
moment that Tune was given it to its end, less the seconds that its training loop counted in
metrics.jsonl (steps, waiting for data, logs, validation, pictures, checkpoints).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median


def loop_seconds(metrics: Path) -> float:
    """Seconds of all phases of the loop."""
    total, before = 0.0, 0
    for text in metrics.read_text().splitlines():
        line = json.loads(text)
        each = sum(value for name, value in line.items() if name.startswith("time/"))
        total += each * (line["iteration"] - before)
        before = line["iteration"]
    return total


def main() -> None:
    sweep = Path(sys.argv[1])
    results = json.loads((sweep / "sweep.json").read_text())
    rows = []
    for trial in results["trials"]:
        if trial["state"] == "finished" and len(trial["trained"]) == 1:
            (stage,) = trial["trained"]
            inside = loop_seconds(sweep / trial["run"] / stage / "metrics.jsonl")
            rows.append(trial["seconds"] - inside)
            print(
                f"{trial['id']}  {trial['seconds']:7.1f} s  loop {inside:7.1f} s  {rows[-1]:5.1f} s"
            )
    print(f"median of {len(rows)} trials: {median(rows):.1f} s; largest {max(rows):.1f} s")


if __name__ == "__main__":
    main()
