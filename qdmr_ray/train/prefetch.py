"""Batches onto the training device, one ahead of the step that uses them. On a GPU, a thread takes
the next batch from the stream, pins it and copies it in a CUDA stream of its own, beside the
current step. On a CPU there is nothing to copy, and a thread would only take time from the step."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import torch

PIXEL_MAXIMUM = 255.0
T = TypeVar("T")


def on_device(
    batches: Iterator[dict[str, Any]],
    names: tuple[str, ...],
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
) -> Generator[dict[str, Any], None, None]:
    """Yields the batches with their images ``names`` on ``device``, float32 in [0, 1] and in the
    ``layout`` that the step wants; anything else in a batch stays as it is. uint8 crops travel;
    floats are made where they are used. Closing the generator ends its thread."""
    if device.type != "cuda":
        return (_moved(batch, names, device, layout) for batch in batches)
    return _on_gpu(batches, names, device, layout)


def one_ahead(items: Iterator[Any], work: Callable[[Any], T]) -> Generator[T, None, None]:
    """Yields ``work`` of each item, computed in a thread while the previous result is in use."""
    nothing_left = object()

    def following() -> Any:
        item = next(items, nothing_left)
        return nothing_left if item is nothing_left else work(item)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(following)
        while (result := coming.result()) is not nothing_left:
            coming = thread.submit(following)
            yield result


def _moved(
    batch: dict[str, Any],
    names: tuple[str, ...],
    device: torch.device,
    layout: torch.memory_format,
    *,
    pinned: bool = False,
) -> dict[str, Any]:
    images = {name: batch[name].pin_memory() if pinned else batch[name] for name in names}
    return batch | {
        name: _as_floats(image.to(device, non_blocking=pinned), layout)
        for name, image in images.items()
    }


def _as_floats(image: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """Divides, widens and turns over in one operation."""
    floats = torch.empty_like(image, dtype=torch.float32, memory_format=layout)
    return torch.div(image, PIXEL_MAXIMUM, out=floats)


def _on_gpu(
    batches: Iterator[dict[str, Any]],
    names: tuple[str, ...],
    device: torch.device,
    layout: torch.memory_format,
) -> Generator[dict[str, Any], None, None]:
    stream = torch.cuda.Stream(device)

    def transfer(batch: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event]:
        with torch.cuda.stream(stream):
            moved = _moved(batch, names, device, layout, pinned=True)
            done = torch.cuda.Event()
            done.record(stream)
        return moved, done

    with closing(one_ahead(batches, transfer)) as ahead:
        for batch, done in ahead:
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            for name in names:
                # The other stream owns this memory and must not reuse it too early.
                batch[name].record_stream(current)
            yield batch
