"""What tests of the ``qdmr`` command share: what it leaves on the terminal, and photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

HEIGHT, WIDTH = 40, 48


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of error, and that there is nothing else."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("qdmr: ")
        assert "Traceback" not in self.err
        return lines[0]


Command = Callable[..., Outcome]


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


FOLDERS = ("Syn/gt", "Syn/S1/train", "Real-Sim/S1/train", "Real-Sim/S1/val", "Real-Sim/S1/val_gt")
