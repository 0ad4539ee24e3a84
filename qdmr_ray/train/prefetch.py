"""Batches onto the training device, one ahead of the step that uses them.

On a GPU a thread takes the next batch from the stream, pins it and copies it over in a CUDA
stream of its own, so that the copy runs beside the current step. On a CPU there is nothing to
copy, and the thread would only take time from the step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

PIXEL_MAXIMUM = 255.0
# Batches on the device beside the one in use.
_AHEAD = 1
_END = object()

T = TypeVar("T")


def on_device(
    batches: Iterator[dict[str, Any]], names: tuple[str, ...], device: torch.device
) -> Generator[dict[str, Any], None, None]:
    """The batches with their images ``names`` on ``device``, float32 in [0, 1].

    uint8 crops travel; floats are made where they are used. Everything else in a batch stays as
    it is. Close the generator to end its thread.
    """
    if device.type != "cuda":
        return (_moved(batch, names, device) for batch in batches)
    return _on_gpu(batches, names, device)


class Ahead(Generic[T]):
    """Runs ``work`` on the items of an iterator in a thread, up to ``_AHEAD`` results ahead."""

    def __init__(self, items: Iterator[Any], work: Callable[[Any], T]) -> None:
        self._items = items
        self._work = work
        self._results: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="prefetch")
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            result = self._results.get()
            if result is _END:
                return
            if isinstance(result, Exception):
                raise result
            yield result

    def close(self) -> None:
        """Ends the thread; what it has ready is dropped."""
        self._stopping.set()
        while self._thread.is_alive():
            # The thread may be waiting to hand over a result.
            try:
                self._results.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            for item in self._items:
                self._results.put(self._work(item))
                if self._stopping.is_set():
                    return
            self._results.put(_END)
        except Exception as error:  # Raised where the results are used.
            self._results.put(error)


def _moved(batch: dict[str, Any], names: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    return batch | {name: batch[name].to(device).float() / PIXEL_MAXIMUM for name in names}


def _on_gpu(
    batches: Iterator[dict[str, Any]], names: tuple[str, ...], device: torch.device
) -> Generator[dict[str, Any], None, None]:
    stream = torch.cuda.Stream(device)

    def transfer(batch: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event]:
        with torch.cuda.stream(stream):
            pinned = {name: batch[name].pin_memory() for name in names}
            moved = {
                name: images.to(device, non_blocking=True).float() / PIXEL_MAXIMUM
                for name, images in pinned.items()
            }
            done = torch.cuda.Event()
            done.record(stream)
        return batch | moved, done

    ahead = Ahead(batches, transfer)
    try:
        for batch, done in ahead:
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            for name in names:
                images: Tensor = batch[name]
                # Its memory belongs to the other stream, which must not reuse it too early.
                images.record_stream(current)
            yield batch
    finally:
        ahead.close()
