"""Whole photographs in strips: the network's own result, whatever the strips and the memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets import QDMR, NetworkSettings, SwinSettings
from qdmr_ray.nets.qdmr import SourceOnlyQDMR
from qdmr_ray.restore import feature_maps, room, streamed
from qdmr_ray.restore.feature_maps import Arena, GroupStatistics
from qdmr_ray.restore.restoration import restore_tensor
from qdmr_ray.restore.room import Room, room_on
from qdmr_ray.restore.streamed import restore_pixels
from qdmr_ray.restore.upsample_conv import Doubling

# Two blocks a level, shifted windows, three levels: every seam that there is.
SETTINGS = NetworkSettings(
    widths=(8, 16, 16, 24),
    residual_blocks=2,
    codebook_size=16,
    code_dim=8,
    swin=SwinSettings(groups=2, blocks=3, heads=2, window=4, mlp_ratio=2.0),
)
PLENTY = 2**30
# Strips of two to some rows, depending on the map's width.
NARROW = 6000


def network(*, seed: int = 0, **changes: object) -> QDMR:
    torch.manual_seed(seed)
    made = QDMR(NetworkSettings(**{**vars(SETTINGS), **changes}))
    for name, parameter in made.named_parameters():
        # Fresh norms are the identity, and fresh codes all alike: neither would show a mistake.
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        if name == "quantizer.codes" or name.startswith("decoder.last"):
            nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def whole(net: QDMR, image: np.ndarray) -> np.ndarray:
    """What the network makes of the whole image at once."""
    scale = np.iinfo(image.dtype).max
    x = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None] / scale
    restored = restore_tensor(net, x)[0].permute(1, 2, 0).numpy()
    return np.rint(restored * scale).astype(image.dtype)


def photograph(height: int, width: int, dtype: type = np.uint16) -> np.ndarray:
    """Dark on one side and bright on the other, so that no strip has the whole's statistics."""
    random = np.random.default_rng(height * width)
    ramp = np.linspace(0.1, 1, height)[:, None, None]
    return (ramp * random.random((height, width, 3)) * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (101, 67), (1, 1), (5, 300), (300, 5)])
@pytest.mark.parametrize("strip", [NARROW, room.STRIP_BYTES])
@pytest.mark.parametrize("memory", [0, 60_000, PLENTY])
def test_strips_give_what_the_whole_gives(
    size: tuple[int, int], strip: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 16 bits, where one step is 1.5e-5: a seam or another statistic would be thousands."""
    monkeypatch.setattr(room, "STRIP_BYTES", strip)
    net, image = network(), photograph(*size)
    found = restore_pixels(net, image, memory=memory)
    assert found.dtype == image.dtype
    difference = np.abs(found.astype(int) - whole(net, image).astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("bias", [True, False])
def test_doubling_is_upsampling_and_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = convolution(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
    found = Doubling(convolution)(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


MIB = 2**20


@pytest.mark.parametrize(
    ("row_bytes", "rows"),
    [
        # What the cache holds, and an even number of it.
        (MIB // 7, 56),
        # Neighbours' rows that are computed again must be few.
        (MIB, feature_maps.FEWEST_ROWS),
        # Nor may a very wide photograph take all memory.
        (9 * MIB, 10),
        (200 * MIB, 2),
    ],
)
def test_strips_fit_the_cache_where_their_edges_cost_little(row_bytes: int, rows: int) -> None:
    strips = [*feature_maps.strips(250, row_bytes, room_on(torch.device("cpu"), None))]
    assert strips[0] == (0, rows)
    assert [last for _, last in strips] == [first for first, _ in strips[1:]] + [250]


@pytest.mark.parametrize(
    "changes", [{"residual_blocks": 1}, {"global_residual": True}, {"fusion": False}]
)
def test_other_networks(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STRIP_BYTES", NARROW)
    net, image = network(**changes), photograph(70, 90, np.uint8)
    assert np.abs(restore_pixels(net, image).astype(int) - whole(net, image)).max() <= 1


def test_a_source_only_network_has_no_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STRIP_BYTES", NARROW)
    torch.manual_seed(1)
    net = SourceOnlyQDMR(SETTINGS).eval()
    image = photograph(70, 90, np.uint8)
    scaled = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 255
    expected = (restore_tensor(net, scaled)[0].permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(restore_pixels(net, image) - expected).max() <= 1


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_as_close_as_its_digits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 16 bits, relative to how far the network takes a photograph: 0.5 to 1.6 % here. A network
    that chooses codes may choose others."""
    monkeypatch.setattr(room, "STRIP_BYTES", NARROW)
    net, image = network(seed=seed, global_residual=True, fusion=False).float(), photograph(64, 96)
    with torch.no_grad():
        net.decoder.last.weight.mul_(0.02)
    exact = restore_pixels(net, image).astype(float)
    near = restore_pixels(net, image, bfloat16=True).astype(float)
    apart = np.sqrt(np.square(exact - near).mean() / np.square(exact - image).mean())
    assert 1e-4 < apart < 0.02


def test_statistics_are_no_narrower_than_float32() -> None:
    """In bfloat16 the mean below would be off by up to 0.5, and the deviation by half."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 8, eps=1e-6)
    x = (torch.randn(1, 8, 50, 30) + 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        statistics = GroupStatistics(norm)
        for first, last in ((0, 20), (20, 50)):
            statistics.add(x[:, :, first:last])
        scale, shift = statistics.affine(torch.float64)
    expected = norm.double()(x.double())
    torch.testing.assert_close(x.double() * scale + shift, expected, rtol=0, atol=1e-3)


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation gives."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.nbytes)
        return result


@pytest.mark.slow
def test_no_tensor_grows_with_the_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for maps, what is held at a time is a strip, in every layer."""
    monkeypatch.setattr(room, "STRIP_BYTES", NARROW)
    largest = []
    for height in (256, 1024):
        with LargestTensor() as watched:
            restore_pixels(network(), photograph(height, 32), memory=0)
        largest.append(watched.largest)
    assert largest[0] == largest[1]


@pytest.mark.parametrize("changes", [{}, {"fusion": False}])
def test_progress_goes_from_strip_to_strip_to_the_end(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "STRIP_BYTES", NARROW)
    shares: list[float] = []
    restore_pixels(network(**changes), photograph(96, 160), memory=0, progress=shares.append)
    assert shares == sorted(shares)
    # Norms are the only weights that are not counted.
    assert shares[-1] == pytest.approx(1, abs=0.03)
    assert shares[-1] <= 1
    # Nothing takes long without a word.
    assert max(np.diff([0, *shares])) < 0.1


def test_maps_beyond_the_memory_lie_in_scratch_files_that_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    unlink = os.unlink

    def counted(name: str) -> None:
        made.append(1)
        unlink(name)

    monkeypatch.setattr(os, "unlink", counted)
    restore_pixels(network(), photograph(64, 64), memory=0, scratch=tmp_path)
    assert made
    assert list(tmp_path.iterdir()) == []
    made.clear()
    restore_pixels(network(), photograph(64, 64), memory=PLENTY, scratch=tmp_path)
    assert made == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(QdmrError, match=r"scratch file of .*No space left.* grant more memory"):
        restore_pixels(network(), photograph(64, 64), memory=0, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_arena_takes_room_back() -> None:
    room = Room(maps=4 * 10 * 10 * 3, strip=PLENTY)
    arena = Arena(room, torch.device("cpu"), torch.float32)
    first = arena.new(3, 10, 10)
    assert not arena.fits(1, 1, 1)
    arena.drop(first)
    assert arena.fits(3, 10, 10)


def test_statistics_of_strips_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # A mean a thousand deviations away: a sum of squares would have no digit left.
    x = torch.randn(1, 8, 50, 30) + torch.arange(8).view(1, 8, 1, 1) + 1000
    statistics = GroupStatistics(norm)
    for first, last in ((0, 7), (7, 8), (8, 50)):
        statistics.add(x[:, :, first:last])
    scale, shift = statistics.affine(torch.float64)
    expected = norm.double()(x.double())
    torch.testing.assert_close(x.double() * scale + shift, expected, rtol=0, atol=2e-3)


def test_a_gpu_with_too_little_memory_begins_again_with_smaller_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room is what a GPU would have told, and its memory ends in the middle of the work."""
    net, image = network(), photograph(96, 160)
    expected = restore_pixels(net, image)
    monkeypatch.setattr(room, "SMALLEST_STRIP", 1)
    monkeypatch.setattr(streamed, "room_on", lambda *_: Room(maps=PLENTY, strip=2**20))
    rooms: list[Room] = []
    monkeypatch.setattr(
        streamed, "Arena", lambda given, *rest: rooms.append(given) or Arena(given, *rest)
    )

    def out_of_memory(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].nbytes > 50_000:
            raise torch.OutOfMemoryError("CUDA out of memory")

    net.decoder.last.register_forward_pre_hook(out_of_memory)
    codes: list[np.ndarray] = []
    found = restore_pixels(net, image, scratch=tmp_path, codes=codes.append)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert len(rooms) > 2
    assert [r.strip for r in rooms] == [2**20 // 2**i for i in range(len(rooms))]
    assert len(codes) == 1


def test_a_photograph_that_fails_keeps_no_scratch_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted already, they would fill the disk as long as they are open."""
    net = network()

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    net.decoder.last.register_forward_pre_hook(broken)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RuntimeError, match="broken"):
        restore_pixels(net, photograph(64, 64), memory=0, scratch=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


class Devices(TorchDispatchMode):
    """Notes the operations that have a tensor on the GPU and give one on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.on_gpu, self.to_host = 0, set[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        taken, given = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        self.on_gpu += "cuda" in given
        if "cuda" in taken and "cpu" in given:
            self.to_host.add(str(function))
        return result


@pytest.mark.parametrize("strip", [2**14, PLENTY])
def test_on_a_gpu_nothing_returns_to_the_host_before_the_result(
    strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each return would wait for all that the GPU has to do. The GPU's tensors have shapes and no
    values here; an operation on tensors of two devices is refused as on a GPU."""
    monkeypatch.setattr(streamed, "room_on", lambda *_: Room(maps=PLENTY, strip=strip))
    results: list[str] = []

    def returned(strip: torch.Tensor, kind: np.dtype) -> np.ndarray:
        results.append(strip.device.type)
        return np.zeros(strip.shape, kind)

    def statistics(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, ...]:
        # What takes its place has no shapes without values.
        return tuple(reversed(torch.var_mean(x, (0, 2, 3), correction=0)))

    monkeypatch.setattr(streamed, "as_integers", returned)
    monkeypatch.setattr(torch, "batch_norm_update_stats", statistics)
    net, image = network().float(), photograph(96, 160, np.uint8)
    with FakeTensorMode(allow_non_fake_inputs=True), Devices() as seen:
        for module in net.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                on_gpu = torch.empty(parameter.shape, device="cuda")
                setattr(module, name, nn.Parameter(on_gpu, requires_grad=False))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
        assert restore_pixels(net, image).shape == image.shape
    assert results == ["cuda"] * len(results)
    assert (len(results) > 1) == (strip < PLENTY)
    assert seen.on_gpu > 100
    assert seen.to_host == set()
