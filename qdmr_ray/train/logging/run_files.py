"""What a stage writes down while it trains: metrics.jsonl, TensorBoard scalars and pictures.

Rank 0 keeps one. In a store the files are written to a scratch folder and copied up at every
checkpoint, so that a reader of the run folder finds what belongs to the newest checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from qdmr_ray.models.layout import METRICS_FILE, PICTURES_FOLDER, TENSORBOARD_FOLDER
from qdmr_ray.photographs.decode import encode_png
from qdmr_ray.storage import Location, write_file_atomic


class Journal:
    """Metrics and pictures of one stage of the run at ``run``; ``iteration`` is where it starts.

    Lines of iterations after ``iteration`` (written by a worker that was lost since) are dropped.
    """

    def __init__(self, run: Location, stage: str, iteration: int) -> None:
        self._run, self._stage = run, stage
        self._scratch = None if run.local_path else tempfile.TemporaryDirectory(prefix="qdmr-")
        self._root = run.local_path or Path(self._scratch.name)  # type: ignore[union-attr]
        # Size and time of each file as it was last copied up.
        self._published: dict[Path, tuple[int, int]] = {}
        self._metrics = self._root / stage / METRICS_FILE
        self._metrics.parent.mkdir(parents=True, exist_ok=True)
        self._keep_lines_up_to(iteration)
        self._writer = SummaryWriter(
            str(self._root / TENSORBOARD_FOLDER / stage), purge_step=iteration + 1
        )

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Appends one line of figures; a figure that is not finite is written as null."""
        line = {"iteration": iteration, "time": round(time.time(), 3)}
        line |= {k: v if math.isfinite(v) else None for k, v in figures.items()}  # type: ignore[misc]
        with self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)

    def picture(self, iteration: int, name: str, image: np.ndarray) -> None:
        """Keeps a picture, uint8 (H, W, 3), in TensorBoard and as the newest of its name."""
        self._writer.add_image(name, image, iteration, dataformats="HWC")
        file = self._run.join(self._stage, PICTURES_FOLDER, f"{name}.png")
        file.write_bytes_atomic(encode_png(image))

    def lines(self) -> list[dict[str, float]]:
        """What has been logged so far, a mapping of figures with ``iteration`` per line."""
        return [json.loads(line) for line in self._metrics.read_text().splitlines()]

    def publish(self) -> None:
        """Makes everything written so far visible in the run folder."""
        self._writer.flush()
        if self._scratch is None:
            return
        for folder, _, names in os.walk(self._root):
            for name in names:
                file = Path(folder) / name
                status = file.stat()
                state = (status.st_size, status.st_mtime_ns)
                if self._published.get(file) == state:
                    continue
                parts = file.relative_to(self._root).parts
                self._run.join(*parts).write_bytes_atomic(file.read_bytes())
                self._published[file] = state

    def close(self) -> None:
        """Publishes and frees the scratch folder."""
        self.publish()
        self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _keep_lines_up_to(self, iteration: int) -> None:
        stored = self._run.join(self._stage, METRICS_FILE)
        lines = stored.read_bytes().decode().splitlines() if stored.exists() else []
        kept = [line for line in lines if _iteration_of(line) <= iteration]
        # In one piece: a worker killed here must not take the log along.
        write_file_atomic(self._metrics, "".join(f"{line}\n" for line in kept).encode())


def _iteration_of(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash
