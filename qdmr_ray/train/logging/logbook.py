"""Where a rank's news of a stage go while it trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location
from qdmr_ray.train.logging.board import Reporter
from qdmr_ray.train.logging.pictures import atlas_sheet, sample_sheet
from qdmr_ray.train.logging.prometheus import Gauges
from qdmr_ray.train.logging.run_files import RunFiles
from qdmr_ray.train.worker_context import Host

# The picture that is shown as an atlas, not as a row of samples.
ATLAS = "codebook_atlas"
# Metrics that the progress bar shows.
_SHOWN = ("/l1", "/perplexity", "validation/psnr")
_log = logging.getLogger(__name__)


class Logbook:
    """Passes rank 0's news to the run folder, Prometheus, the host and the progress bar; other
    ranks only warn, in Ray's logs.

    ``iterations`` is the stage's last one. The driver reads the progress bar's position from
    ``board``.
    """

    def __init__(
        self, run_name: str, stage: str, *, iterations: int, host: Host, board: Any
    ) -> None:
        self._stage, self._iterations = stage, iterations
        self._host = host
        self._leads = host.rank == 0
        self._reporter = Reporter(board if self._leads else None)
        self._gauges = Gauges(run_name, stage) if self._leads else None
        self._files: RunFiles | None = None
        self._said: set[str] = set()

    def open(self, run: Location, iteration: int) -> None:
        """Begins, or goes on after ``iteration``: the host hears again what was logged before."""
        if self._leads:
            self._files = RunFiles(run, self._stage, iteration)
            for line in self._files.lines:
                self._host.logged(self._stage, line.iteration, line.metrics)
        # So that an alert can tell a stage that never gets anywhere.
        self._show(iteration, {})

    def reached(self, iteration: int) -> None:
        """Posts the position, without metrics."""
        self._reporter.post(iteration)

    def asked_to_stop(self) -> bool:
        """Whether the driver wants training to stop; known to rank 0."""
        return self._reporter.asked_to_stop()

    def leave(self) -> None:
        """Tells the driver that training has ended, or stopped at a checkpoint."""
        self._reporter.leave()

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Writes a line of metrics."""
        if self._files is not None:
            self._files.log(iteration, metrics)
            self._show(iteration, metrics)
            self._host.logged(self._stage, iteration, metrics)
        shown = {name: value for name, value in metrics.items() if name.endswith(_SHOWN)}
        shown |= {"samples/s": metrics["samples_per_second"]}
        shown |= {"data_wait": metrics["data_wait_fraction"]}
        self._reporter.post(iteration, shown)

    @property
    def draws(self) -> bool:
        """Whether this rank's pictures are kept."""
        return self._files is not None

    def draw(self, iteration: int, pictures: Mapping[str, Tensor], count: int) -> None:
        """Keeps samples, ``count`` of each picture, and the codebook's atlas."""
        assert self._files is not None
        samples = {name: images for name, images in pictures.items() if name != ATLAS}
        sheets: dict[str, np.ndarray] = {"samples": sample_sheet(samples, count)}
        if ATLAS in pictures:
            sheets[ATLAS] = atlas_sheet(pictures[ATLAS])
        for name, sheet in sheets.items():
            self._files.picture(iteration, name, sheet)

    def warn(self, *lines: str) -> None:
        """Shows lines in Ray's log, and above the progress bar."""
        for line in lines:
            _log.warning(line)
            self._reporter.warn(line)

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

    def save_what_can_be(self) -> None:
        """Publishes after training has failed, when no other error may hide why."""
        with suppress(QdmrError):
            self.publish()

    def close(self) -> None:
        """Publishes, and tells the driver that training has ended."""
        if self._files is not None:
            self._files.close()
        self.leave()

    def _show(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self._gauges is not None:
            # So that an alert can tell a stage that has ended from one that is gone.
            planned = {"iterations_planned": float(self._iterations)}
            self._gauges.set(iteration, {**metrics, **planned})
