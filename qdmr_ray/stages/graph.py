"""Records a step's work on a GPU once and replays it as one CUDA graph.

A training step is some thousand kernels, and PyTorch's work on the CPU to start each takes longer
than a fast GPU needs to run them in bfloat16. A recording starts as a whole. It always reads and
writes the same memory: batches are copied into it, and logged scalars are copied out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets.weights import first_line
from qdmr_ray.stages.objective import Batch, Losses

# Steps that run without a recording first: libraries set themselves up, Adam makes its moments, and
# kernels are chosen and compiled.
WARM_UP = 3
Shapes = tuple[tuple[str, torch.Size], ...]


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    batch: dict[str, Tensor]
    names: list[str]
    # All scalars of the step in one tensor.
    scalars: Tensor


class RecordedSteps:
    """``steps(batch)`` calls ``work(batch)`` the first few times, and then replays a recording, of
    which there is one for each set of shapes in ``batch``. ``work`` returns scalars by name, may
    not wait for the GPU, and changes only tensors that stay at their address."""

    def __init__(self, work: Callable[[Batch], Losses]) -> None:
        self._work = work
        self._stream = torch.cuda.Stream()
        self._warm: dict[Shapes, int] = {}
        self._recordings: dict[Shapes, _Recording] = {}

    def __call__(self, batch: Batch) -> Losses:
        shapes = tuple((name, images.shape) for name, images in batch.items())
        recording = self._recordings.get(shapes)
        if recording is None:
            done = self._warm.get(shapes, 0)
            if done < WARM_UP:
                self._warm[shapes] = done + 1
                return self._as_it_is(batch)
            recording = self._recordings[shapes] = self._record(batch)
        own = recording.batch
        torch._foreach_copy_(list(own.values()), [batch[name] for name in own])
        recording.graph.replay()
        # Cloned, since the next replay overwrites them.
        return dict(zip(recording.names, recording.scalars.clone(), strict=True))

    def forget(self) -> None:
        """Discards all recordings; needed once tensors that ``work`` uses have been replaced."""
        self._warm.clear()
        self._recordings.clear()

    def _as_it_is(self, batch: Batch) -> Losses:
        # Runs on its own stream, like a recording: gradients belong to the stream that made them.
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            scalars = self._work(batch)
        current.wait_stream(self._stream)
        return {name: scalar.clone() for name, scalar in scalars.items()}

    def _record(self, batch: Batch) -> _Recording:
        own = {name: images.clone() for name, images in batch.items()}
        # Frees the memory of the steps so far; a recording has its own.
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        try:
            # "thread_local" lets other threads go on moving batches to the GPU.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                scalars = self._work(own)
                row = torch.stack([scalar.float() for scalar in scalars.values()])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise QdmrError(
                "compute.cuda_graph=true: a step could not be recorded, perhaps because something "
                f"in it waits for the GPU ({first_line(error)}); set it to false"
            ) from error
        return _Recording(graph, own, list(scalars), row)
