"""The logbook passes a rank's news to every place where they are kept or shown."""

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from torch import Tensor

from qdmr_ray.patience import WATCH
from qdmr_ray.storage import Location
from qdmr_ray.train.logging.pictures import atlas_sheet, sample_sheet
from qdmr_ray.train.logging.prometheus import Gauges
from qdmr_ray.train.logging.run_files import RunFiles
from qdmr_ray.train.worker_context import Host

# This picture is shown as an atlas, not as a row of samples.
ATLAS = "codebook_atlas"
# The progress bar shows these metrics.
_SHOWN = ("/l1", "/perplexity", "validation/psnr")
_log = logging.getLogger(__name__)


class Logbook:
    """Passes rank 0's news to the run folder, Prometheus, the host and the driver; other ranks only
    warn, in Ray's logs. ``iterations`` is the stage's last one. The driver reads ``board``;
    training never waits for its answer."""

    def __init__(
        self, run_name: str, stage: str, *, iterations: int, host: Host, board: Any
    ) -> None:
        self._stage, self._iterations = stage, iterations
        self._host = host
        self._board = board if host.rank == 0 else None
        self._gauges = Gauges(run_name, stage) if host.rank == 0 else None
        self._files: RunFiles | None = None
        self._said: set[str] = set()
        self._shown: dict[str, float] = {}
        self._posted_at = -math.inf
        self._answer: Any = None
        self._stopping = False

    def open(self, run: Location, iteration: int) -> None:
        """Begins, or goes on after ``iteration``: the host receives earlier lines again."""
        if self._host.rank == 0:
            self._files = RunFiles(run, self._stage, iteration)
            for line in self._files.lines:
                self._host.logged(self._stage, line.iteration, line.metrics)
        # An alert can then find a stage that never gets anywhere.
        self._show(iteration, {})

    def reached(self, iteration: int) -> None:
        """Posts the position for the driver, once in a while."""
        if time.monotonic() - self._posted_at >= WATCH.seconds:
            self._post(iteration)

    def _post(self, iteration: int) -> None:
        if self._board is None:
            return
        self._posted_at = time.monotonic()
        # The last post's answer has arrived by now.
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):
                self._stopping = self._stopping or ray.get(self._answer)
        self._answer = self._board.post.remote(iteration, self._shown)

    def asked_to_stop(self) -> bool:
        """Returns whether somebody wants a stop at a checkpoint; rank 0 knows a second later."""
        return self._stopping

    def leave(self) -> None:
        """Tells the driver that training has ended, or stopped at a checkpoint."""
        if self._board is not None:
            self._board.leave.remote()

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Writes a line of metrics."""
        if self._files is not None:
            self._files.log(iteration, metrics)
            self._show(iteration, metrics)
            self._host.logged(self._stage, iteration, metrics)
        self._shown = {name: value for name, value in metrics.items() if name.endswith(_SHOWN)}
        self._shown["samples/s"] = metrics["samples_per_second"]
        self._shown["data_wait"] = metrics["data_wait_fraction"]
        self._post(iteration)

    def draw(self, iteration: int, pictures: Mapping[str, Tensor], count: int) -> None:
        """Keeps samples, ``count`` of each picture, and the codebook's atlas; for rank 0 only."""
        assert self._files is not None
        samples = {name: images for name, images in pictures.items() if name != ATLAS}
        self._files.picture(iteration, "samples", sample_sheet(samples, count))
        if ATLAS in pictures:
            self._files.picture(iteration, ATLAS, atlas_sheet(pictures[ATLAS]))

    def warn(self, *lines: str) -> None:
        """Shows lines in Ray's log, and above the progress bar."""
        for line in lines:
            _log.warning(line)
            if self._board is not None:
                self._board.warn.remote(line)

    def warn_once(self, topic: str, line: str) -> None:
        """Shows the first of all warnings of a topic."""
        if topic not in self._said:
            self._said.add(topic)
            self.warn(line)

    def not_finite(self, metric: str) -> None:
        """Counts a metric that is not finite, for Prometheus."""
        if self._gauges is not None:
            self._gauges.not_finite(metric)

    def publish(self) -> None:
        """Makes everything written so far visible in the run folder."""
        if self._files is not None:
            self._files.publish()

    def close(self) -> None:
        """Publishes, and tells the driver that training has ended."""
        if self._files is not None:
            self._files.close()
        self.leave()

    def _show(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self._gauges is not None:
            # An alert can then tell a stage that has ended from one that is gone.
            planned = {"iterations_planned": float(self._iterations)}
            self._gauges.set(iteration, {**metrics, **planned})
