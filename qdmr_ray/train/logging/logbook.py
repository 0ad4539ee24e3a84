"""What one rank tells of a stage while it trains, and to whom."""

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
from qdmr_ray.train.logging.run_files import Journal
from qdmr_ray.train.worker_context import Host

# The picture that is shown as an atlas, not as a row of samples.
ATLAS = "codebook_atlas"
# Figures that the progress line shows.
_SHOWN = ("/l1", "/perplexity", "validation/psnr")
_log = logging.getLogger(__name__)


class Logbook:
    """Rank 0 tells the run folder, Prometheus, whoever watches, and the progress line; other ranks
    only warn, in Ray's logs.

    ``iterations`` is the stage's last one. ``board`` is what the progress line is read from.
    """

    def __init__(
        self, run_name: str, stage: str, *, iterations: int, host: Host, board: Any
    ) -> None:
        self._stage, self._iterations = stage, iterations
        self._host = host
        self._leads = host.rank == 0
        self._reporter = Reporter(board if self._leads else None)
        self._gauges = Gauges(run_name, stage) if self._leads else None
        self._journal: Journal | None = None
        self._said: set[str] = set()

    def open(self, run: Location, iteration: int) -> None:
        """Begins, or goes on after ``iteration``; what was logged before is told again."""
        if self._leads:
            self._journal = Journal(run, self._stage, iteration)
            for line in self._journal.lines():
                self._host.logged(self._stage, int(line["iteration"]), line)
        # So that an alert can tell a stage that never gets anywhere.
        self._show(iteration, {})

    def progress(self, iteration: int) -> None:
        """How far it is, without figures."""
        self._reporter.post(iteration)

    def asked_to_stop(self) -> bool:
        """Whether the driver, which is told how far it is, wants it to stop; known to rank 0."""
        return self._reporter.asked_to_stop()

    def leave(self) -> None:
        """Says that training has ended, or stopped at a checkpoint."""
        self._reporter.leave()

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        """A line of figures."""
        if self._journal is not None:
            self._journal.log(iteration, figures)
            self._show(iteration, figures)
            self._host.logged(self._stage, iteration, figures)
        shown = {name: value for name, value in figures.items() if name.endswith(_SHOWN)}
        shown |= {"samples/s": figures["samples_per_second"]}
        shown |= {"data_wait": figures["data_wait_fraction"]}
        self._reporter.post(iteration, shown)

    @property
    def draws(self) -> bool:
        """Whether anybody wants pictures from this rank."""
        return self._journal is not None

    def draw(self, iteration: int, pictures: Mapping[str, Tensor], count: int) -> None:
        """Samples, ``count`` of each, and the codebook's atlas."""
        assert self._journal is not None
        samples = {name: images for name, images in pictures.items() if name != ATLAS}
        sheets: dict[str, np.ndarray] = {"samples": sample_sheet(samples, count)}
        if ATLAS in pictures:
            sheets[ATLAS] = atlas_sheet(pictures[ATLAS])
        for name, sheet in sheets.items():
            self._journal.picture(iteration, name, sheet)

    def warn(self, *lines: str) -> None:
        """Goes into Ray's log, and above the progress line."""
        for line in lines:
            _log.warning(line)
            self._reporter.warn(line)

    def warn_once(self, topic: str, line: str) -> None:
        """The first of all warnings of a topic."""
        if topic not in self._said:
            self._said.add(topic)
            self.warn(line)

    def not_finite(self, figure: str) -> None:
        """Counts it for Prometheus."""
        if self._gauges is not None:
            self._gauges.not_finite(figure)

    def publish(self) -> None:
        """Makes everything written so far visible in the run folder."""
        if self._journal is not None:
            self._journal.publish()

    def save_what_can_be(self) -> None:
        """The same when training has failed, and nothing may hide why."""
        with suppress(QdmrError):
            self.publish()

    def close(self) -> None:
        """Publishes and frees what the journal holds."""
        if self._journal is not None:
            self._journal.close()

    def _show(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Figures for Prometheus."""
        if self._gauges is not None:
            # So that an alert can tell a stage that has ended from one that is gone.
            planned = {"iterations_planned": float(self._iterations)}
            self._gauges.set(iteration, {**figures, **planned})
