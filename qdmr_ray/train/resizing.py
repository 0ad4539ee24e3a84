"""Another number of workers (``scaling.min_workers``), each time from a checkpoint that they save
first, so that no iteration is done twice."""

import time
from typing import Any

from qdmr_ray.ray_compat import ElasticScalingPolicy, NoopDecision


class SavedResizes(ElasticScalingPolicy):
    """Decides in Ray Train's controller how many workers there are. Ray Train (2.60) ends running
    workers in the moment in which it decides on another number; they are asked here, through
    ``board``, to leave at a checkpoint, as after a notice. Ray Train then starts as many as there
    is room for. They train on until all of them have heard of it, and the controller doesn't wait:
    it sees at any time that they have ended or failed, and it can be told to abort.

    Workers that are still there after ``patience`` seconds are ended where they are.
    """

    def __init__(self, scaling_config: Any, board: Any, patience: float) -> None:
        super().__init__(scaling_config)
        self._board, self._patience = board, patience
        # The newest decision that waits for the workers, and since when they are asked.
        self._postponed: Any = None
        self._asked = 0.0

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Ray Train calls this after each look at the workers, none of which has failed and not
        all of which have ended."""
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if self._postponed is None:
            if isinstance(decision, NoopDecision):
                return decision
            self._asked = time.monotonic()
            self._board.resize.remote()
        if not isinstance(decision, NoopDecision):
            self._postponed = decision
        if time.monotonic() - self._asked < self._patience:
            return NoopDecision()
        return self._taken_back(self._postponed)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Ray Train calls this before a start of the workers, until it decides on their number."""
        return self._taken_back(super().make_decision_for_non_running_worker_group())

    def _taken_back(self, decision: Any) -> Any:
        """Returns ``decision``; the workers that it starts must not leave at once."""
        if self._postponed is not None:
            self._postponed = None
            self._board.resized.remote()
        return decision
