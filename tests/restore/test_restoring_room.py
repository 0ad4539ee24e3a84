"""How the memory of a GPU is shared out, as far as that can be computed without one."""

import math

import pytest
import torch

from qdmr_ray.restore import room
from qdmr_ray.restore.room import Room, as_room_allows, room_on, share_out

GIB = 2**30
# What 4000 x 6000 pixels of 64 channels take in float32.
LARGEST_MAP = 4000 * 6016 * 64 * 4


@pytest.mark.parametrize("free", [0, GIB // 2, 4 * GIB, 7.5 * GIB, 23 * GIB, 79 * GIB, 140 * GIB])
@pytest.mark.parametrize("memory", [None, 0, 2 * GIB, 60 * GIB])
def test_a_gpus_room_is_within_its_memory(free: float, memory: int | None) -> None:
    found = share_out(int(free), memory)
    assert room.SMALLEST_STRIP <= found.strip <= room.LARGEST_STRIP
    if memory is not None:
        # What the user says holds, be it too much.
        assert found.maps == memory
    elif found.strip > room.SMALLEST_STRIP:
        assert found.maps + room.TENSORS * found.strip <= room.SHARE * free
    # More memory is never worse.
    assert share_out(int(free) + GIB, memory).strip >= found.strip


def test_a_large_gpu_takes_24_megapixels_in_few_strips_and_no_file() -> None:
    found = share_out(79 * GIB, None)
    # The decoder's last level needs its input, its result and one between.
    assert found.maps > 3 * LARGEST_MAP
    assert math.ceil(4000 / found.rows(LARGEST_MAP // 4000, multiple=2, fewest=32)) <= 6
    small = share_out(int(7.5 * GIB), None)
    assert LARGEST_MAP / 2 < small.maps < LARGEST_MAP
    assert 8 < math.ceil(4000 / small.rows(LARGEST_MAP // 4000, multiple=2, fewest=32)) < 20


def test_no_tensor_of_a_strip_has_more_numbers_than_32_bits_count() -> None:
    # The narrowest type has two bytes; four results are computed around each position.
    assert 4 * room.LARGEST_STRIP // 2 <= 2**31


def test_what_pytorch_holds_unused_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"mem_get_info": (3 * GIB, 80 * GIB), "memory_reserved": 9 * GIB}
    told["memory_allocated"] = 2 * GIB
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert room_on(torch.device("cuda", 0), None) == share_out(10 * GIB, None)


def test_on_a_cpu_strips_fit_the_cache() -> None:
    found = room_on(torch.device("cpu"), None)
    assert found == Room(maps=2 * GIB, strip=room.STRIP_BYTES, cache=room.CACHED_BYTES)
    assert room_on(torch.device("cpu"), 5).maps == 5


def test_too_much_room_is_halved_until_it_fits_or_no_strip_is_smaller() -> None:
    tried: list[Room] = []

    def run(given: Room) -> str:
        tried.append(given)
        if given.strip > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    fits = 3 * room.SMALLEST_STRIP
    begin = Room(maps=8 * GIB, strip=8 * room.SMALLEST_STRIP)
    assert as_room_allows(begin, run) == "done"
    assert [found.maps // GIB for found in tried] == [8, 4, 2]
    fits = 0
    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        as_room_allows(begin, run)
    assert tried[-1].strip == room.SMALLEST_STRIP
    with pytest.raises(ValueError, match="another"):
        as_room_allows(begin, lambda _: int("another"))
