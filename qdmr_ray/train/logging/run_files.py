"""The files of a training stage in the run folder: metrics.jsonl, TensorBoard, pictures. In a store
they are written to a scratch folder and copied up at every checkpoint, so that a reader of the run
folder finds what belongs to the newest checkpoint."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from qdmr_ray.models.documents import MetricsLine, read_metrics
from qdmr_ray.models.layout import METRICS_FILE, PICTURES_FOLDER, TENSORBOARD_FOLDER
from qdmr_ray.photographs.decode import encode_png
from qdmr_ray.storage import Location, write_file_atomic


class RunFiles:
    """The files of one stage of the run at ``run``; training goes on after ``iteration``. Later
    lines, which a lost worker has written, are dropped; ``lines`` are those that stay."""

    def __init__(self, run: Location, stage: str, iteration: int) -> None:
        self._run, self._stage = run, stage
        self._scratch = None if run.local_path else tempfile.TemporaryDirectory(prefix="qdmr-")
        self._root = run.local_path or Path(self._scratch.name)  # type: ignore[union-attr]
        # The size and time of each file as it was last copied up.
        self._published: dict[Path, tuple[int, int]] = {}
        self._metrics = self._root / stage / METRICS_FILE
        self._metrics.parent.mkdir(parents=True, exist_ok=True)
        found = read_metrics(run.join(stage, METRICS_FILE))
        self.lines = [line for line in found if line.iteration <= iteration]
        # The log is written in one piece: a worker killed here must not take it along.
        write_file_atomic(self._metrics, "".join(map(_text, self.lines)).encode())
        self._writer = SummaryWriter(
            str(self._root / TENSORBOARD_FOLDER / stage), purge_step=iteration + 1
        )

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Appends a line of metrics."""
        with self._metrics.open("a") as file:
            file.write(_text(MetricsLine.of(iteration, time.time(), metrics)))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def picture(self, iteration: int, name: str, image: np.ndarray) -> None:
        """Keeps a picture, uint8 (H, W, 3), in TensorBoard and as the newest of its name."""
        self._writer.add_image(name, image, iteration, dataformats="HWC")
        file = self._run.join(self._stage, PICTURES_FOLDER, f"{name}.png")
        file.write_bytes_atomic(encode_png(image))

    def publish(self) -> None:
        """Makes everything written so far visible in the run folder."""
        self._writer.flush()
        if self._scratch is None:
            return
        for file in filter(Path.is_file, self._root.rglob("*")):
            status = file.stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._published.get(file) != state:
                place = self._run.join(*file.relative_to(self._root).parts)
                place.write_bytes_atomic(file.read_bytes())
                self._published[file] = state

    def close(self) -> None:
        """Publishes and frees the scratch folder."""
        self.publish()
        self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()


def _text(line: MetricsLine) -> str:
    return line.to_json(indent=None) + "\n"
