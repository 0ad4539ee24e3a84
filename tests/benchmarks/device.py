"""Runs the parts of ``device_parts.py``, each in a process and a time of its own (``device.sh``).

A part that fails, hangs or kills its process costs its own time and nothing else: what it had
measured until then is kept. ``device.json`` is written after each part, so a machine that is taken
away leaves the parts that were done.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# What each part may take in seconds, in the order in which they run: what the issues ask for first.
# A lent machine gives a command ten minutes; all parts and their processes' ends take nine.
LIMITS = {
    "machine": 20,
    "steps_uda": 114,
    "tests": 70,
    "exchange": 50,
    "restore": 45,
    "steps_base": 78,
    "steps_vqgan": 83,
    "training": 40,
    "profile": 30,
}
# A dry run is there to find what is wrong, on machines that are busy with other things.
DRY_LIMIT = 600
RESULTS = "device.json"
PROGRAM = Path(__file__).with_name("device_parts.py")
# Characters of a part's output that are kept, its end.
KEPT = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {RESULTS}")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy size")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Whoever ends this program ends the part that runs, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    results: dict[str, Any] = {
        "dry_run": arguments.dry_run,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "parts": {},
    }
    for name in arguments.parts:
        limit = DRY_LIMIT if arguments.dry_run else LIMITS[name]
        part = run(name, limit, dry_run=arguments.dry_run)
        results["parts"][name] = part
        results["seconds"] = round(time.monotonic() - began, 1)
        whole = arguments.out / f".{RESULTS}"
        whole.write_text(json.dumps(results, indent=1))
        whole.replace(arguments.out / RESULTS)
        told = f": {part['error']}" if "error" in part else ""
        print(f"{name}: {part['status']}, {len(part['rows'])} rows, {part['seconds']} s{told}")
        sys.stdout.flush()


def run(name: str, limit: float, *, dry_run: bool) -> dict[str, Any]:
    """Runs one part for at most ``limit`` seconds; returns its rows, and how it ended: "done",
    "failed" or "overran"."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qdmr-device-") as folder:
        rows, output = Path(folder) / "rows.jsonl", Path(folder) / "output.txt"
        command = [sys.executable, PROGRAM, name, rows, *(["--dry-run"] if dry_run else [])]
        with output.open("wb") as out:
            # In a group of its own, so that what the part has started ends with it.
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
            try:
                status = "failed" if process.wait(limit) else "done"
            except subprocess.TimeoutExpired:
                status = "overran"
            finally:
                end(process)
        text = output.read_text(errors="replace").strip()
        # A process that was killed may have left half a line.
        whole = rows.read_text().rpartition("\n")[0] if rows.is_file() else ""
    part = {"status": status, "seconds": round(time.monotonic() - began, 1), "limit": limit}
    if status == "overran":
        part["error"] = f"took longer than its {limit:g} s"
    elif status == "failed":
        last = text.splitlines()[-1:] or [f"ended with {process.returncode}"]
        part |= {"error": last[0], "output": text[-KEPT:]}
    return part | {"rows": [json.loads(line) for line in whole.splitlines()]}


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def commit() -> str | None:
    """Returns the commit, where there is git and a repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    main()
