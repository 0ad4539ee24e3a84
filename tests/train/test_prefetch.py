"""Batches reach the device in order, one ahead, and errors and early ends are passed on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from qdmr_ray.train.prefetch import on_device, one_ahead


def prefetching() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_images_become_floats_and_the_rest_stays() -> None:
    batch = {
        "source": torch.tensor([0, 51, 255], dtype=torch.uint8),
        "target": torch.tensor([255], dtype=torch.uint8),
        "positions": [7],
    }
    (found,) = on_device(iter([batch]), ("source", "target"), torch.device("cpu"))
    torch.testing.assert_close(found["source"], torch.tensor([0.0, 0.2, 1.0]))
    assert found["target"].dtype == torch.float32
    assert found["positions"] == [7]


def test_images_have_the_layout_that_is_asked_for() -> None:
    crops = torch.arange(2 * 3 * 4 * 5).to(torch.uint8).view(2, 3, 4, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        batches = on_device(iter([{"source": crops}]), ("source",), torch.device("cpu"), layout)
        (found,) = batches
        assert found["source"].is_contiguous(memory_format=layout)
        assert torch.equal(found["source"], crops.float() / 255)


def test_the_next_result_is_made_while_one_is_in_use() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    results = one_ahead(items(), lambda number: number * 10)
    assert next(results) == 0
    end = time.monotonic() + 60
    while len(taken) < 2 and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    assert taken == [0, 1]
    assert list(results) == [10, 20, 30, 40]


def test_an_error_comes_after_the_batches_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the store is gone")

    results = one_ahead(items(), lambda number: number)
    assert next(results) == 1
    with pytest.raises(OSError, match="the store is gone"):
        next(results)


def test_closing_early_ends_the_thread() -> None:
    endless = one_ahead(iter(lambda: 1, 2), lambda number: number)
    assert next(endless) == 1
    assert prefetching()
    endless.close()
    assert not prefetching()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_receives_what_a_cpu_would() -> None:
    batches = [
        {"source": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)} for _ in range(20)
    ]
    on_cpu = on_device(iter(batches), ("source",), torch.device("cpu"))
    on_gpu = on_device(iter(batches), ("source",), torch.device("cuda"))
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(found["source"].cpu(), expected["source"], rtol=0, atol=0)
