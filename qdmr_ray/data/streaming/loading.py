"""One bounded piece of an endless stream: a Ray Data execution over some iterations.

A row names the iterations of a block; a task computes their samples (``plan``), cuts them out of
the mapped shards (``crops``) and returns one block of several batches. The rows go in as ready
blocks, not as ``ray.data.range``: its read tasks want a whole CPU each, which a node full of
training workers does not have, and they add a second to every segment (1.2 s against 0.2 s to the
first block).
"""

import logging
import queue
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockAccessor
from ray.util.debug import log_once

from qdmr_ray.data.streaming.crops import CropRequest, cutter_of_process
from qdmr_ray.errors import QdmrError

# A block with this column holds an error instead of samples.
_ERROR = "error"
# A worker that waits this long for its data is probably short of CPUs; it says so once.
_PATIENCE_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Segment:
    """One Ray Data execution over iterations ``first`` .. ``end - 1``, started by a thread.

    The thread takes every block's reference as soon as it is there, so that the execution ends with
    its last task. An execution that waits for its consumer doesn't sleep: inside the training
    process it would hold the interpreter lock half of the time (measured on 2 cores: a step takes
    four times as long). The blocks lie in the object store until they are used.
    """

    def __init__(self, request: CropRequest, first: int, end: int, block: int) -> None:
        self.end = end
        _quiet_console()
        self._dataset = _dataset(request, first, end, block)
        self._queue: queue.Queue[ray.ObjectRef | Exception | None] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"segment-{first}")
        self._thread.start()

    def next_block(self) -> dict[str, np.ndarray] | None:
        """Returns the next block as read-only arrays in shared memory, ``None`` at the end or when
        stopped; raises QdmrError where a shard is missing or damaged."""
        item = self._next_item()
        if item is None:
            return None
        if isinstance(item, Exception):
            raise item
        block: dict[str, np.ndarray]
        block = BlockAccessor.for_block(ray.get(item)).to_batch_format("numpy")
        if _ERROR in block:
            raise QdmrError(str(block[_ERROR][0]))
        return block

    def stop(self) -> None:
        """Ends the execution and its thread."""
        self._stopping.set()
        self._thread.join(timeout=5.0)

    def _next_item(self) -> ray.ObjectRef | Exception | None:
        warned = False
        while not self._stopping.is_set():
            try:
                return self._queue.get(timeout=_PATIENCE_SECONDS)
            except queue.Empty:
                if not warned:
                    _log.warning(
                        "no training data for %d s; are there CPUs to spare for the loading "
                        "tasks (loader_workers x loader_cpus for each training worker)?",
                        _PATIENCE_SECONDS,
                    )
                warned = True
        return None

    def _run(self) -> None:
        bundles: Any = self._dataset.iter_internal_ref_bundles()
        try:
            for bundle in bundles:
                for reference in bundle.block_refs:
                    self._queue.put(reference)
                if self._stopping.is_set():
                    return
            self._queue.put(None)
        except Exception as error:  # The consumer raises it.
            self._queue.put(error)
        finally:
            # Closing the generator ends the execution at once.
            getattr(bundles, "close", lambda: None)()


def _dataset(request: CropRequest, first: int, end: int, block: int) -> ray.data.Dataset:
    """Builds the lazy pipeline over iterations ``first`` .. ``end - 1``: a row, a task, a block."""
    starts = range(first, end, block)
    rows = [pa.table({"first": [start], "end": [min(start + block, end)]}) for start in starts]
    dataset = ray.data.from_blocks(rows).map_batches(
        _cut_block,
        fn_args=(request,),
        batch_size=None,
        compute=ray.data.TaskPoolStrategy(min(request.settings.loader_workers, len(rows))),
        num_cpus=request.settings.loader_cpus,
        # The shards are on this node's disk or in its page cache, and the consumer is here too.
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        # Where this node's workers leave no CPU, another node is better than waiting for ever.
        fallback_strategy=[{"label_selector": {}}],
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A block is never split: its rows are whole batches, whatever their size.
    context.target_max_block_size = None
    context.execution_options.preserve_order = True
    return dataset


def _cut_block(row: dict[str, np.ndarray], request: CropRequest) -> dict[str, np.ndarray]:
    iterations = np.arange(int(row["first"][0]), int(row["end"][0]))
    try:
        return cutter_of_process(request).cut(iterations)
    except QdmrError as error:
        # The error travels as a block, since an exception would arrive through three of Ray's own.
        return {_ERROR: np.array([str(error)])}


def _quiet_console() -> None:
    """Keeps Ray Data's lines about every single execution in its log files."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
    # This marks Ray's once-per-process warning that progress bars are off as already said.
    log_once("ray_data_progress_manager_disabled")
