"""The blocks of the Swin bottleneck on a feature map, band by band of whole windows."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qdmr_ray.nets.swin import SwinBlock, shift_mask
from qdmr_ray.restore.feature_maps import FeatureMap, strips
from qdmr_ray.restore.room import Room

# Windows whose attention is computed at once: a GPU's kernels count them in 16 bits.
MOST_WINDOWS = 2**15


@dataclass(frozen=True)
class _Cut:
    """How a band is cut into windows: ``order`` are the numbers of its tokens by window, int64
    (windows, window * window), ``back`` is the inverse, and ``mask`` the part of ``shift_mask`` for
    these windows, or None."""

    order: Tensor
    back: Tensor
    mask: Tensor | None


class SwinBands:
    """Runs Swin blocks on the maps of one photograph, which all have the same size. How bands are
    cut is kept from block to block, on the device."""

    def __init__(self, room: Room, device: torch.device) -> None:
        self._room, self._device = room, device
        self._cuts: dict[tuple[int, int, int, int, bool], _Cut] = {}

    def block(self, block: SwinBlock, before: FeatureMap, out: FeatureMap) -> None:
        """Runs one block from ``before`` into ``out``; both may be the same map, since windows
        don't overlap. A shifted block shifts each band, too, and the last band then ends with the
        map's first rows."""
        window, shift, height = block.window, block.shift, before.height
        row_bytes = before.width * _hidden(block) * before.dtype.itemsize
        for first, last in strips(height, row_bytes, self._room, multiple=window, fewest=window):
            if last - first == height:
                # Rolled while it is gathered, so that nothing is copied.
                out.put(0, self._band(block, before.rows(0, height), is_last=True, roll=shift))
                return
            begin, end = first + shift, min(last + shift, height)
            band = before.rows(begin, end)
            if last + shift > height:
                band = torch.cat([band, before.rows(0, shift)], dim=2)
            band = self._band(block, band, is_last=last == height)
            out.put(begin, band[:, :, : end - begin])
            if last + shift > height:
                out.put(0, band[:, :, end - begin :])

    def _band(self, block: SwinBlock, band: Tensor, *, is_last: bool, roll: int = 0) -> Tensor:
        """Runs one block on (1, C, n, width), n a multiple of the window, with windows that begin
        ``roll`` rows down and wrap round; ``is_last`` marks the last band of a map."""
        rows = band[0].permute(1, 2, 0)
        height, width, channels = rows.shape
        cut = self._cut(height, width, block, roll, is_last=is_last)
        tokens = rows.reshape(height * width, channels)
        windows = tokens.index_select(0, cut.order.flatten()).view(*cut.order.shape, channels)
        after = []
        # A single row of windows of a very wide photograph is more than a strip.
        window_bytes = max(
            cut.order.shape[1] * _hidden(block) * band.itemsize, self._room.strip // MOST_WINDOWS
        )
        for first, last in strips(len(windows), window_bytes, self._room, multiple=2, fewest=1):
            x = windows[first:last]
            mask = None if cut.mask is None else cut.mask[first:last]
            x = x + block.attention(block.norm1(x), mask)
            after.append((x + block.mlp(block.norm2(x))).to(band.dtype))
        windows = after[0] if len(after) == 1 else torch.cat(after)
        result = windows.flatten(0, 1).index_select(0, cut.back)
        return result.view(rows.shape).permute(2, 0, 1).unsqueeze(0)

    def _cut(self, height: int, width: int, block: SwinBlock, roll: int, *, is_last: bool) -> _Cut:
        window, shift = block.window, block.shift
        key = height, width, shift, roll, is_last
        if key not in self._cuts:
            order = _window_order(height, width, window, (roll, shift)).to(self._device)
            mask = None
            if shift:
                mask = _band_mask(height, width, window, shift, self._device, is_last=is_last)
            self._cuts[key] = _Cut(order, order.flatten().argsort(), mask)
        return self._cuts[key]


def _hidden(block: SwinBlock) -> int:
    """Returns the width of the MLP's inner layer, the widest of the block."""
    return cast(nn.Linear, block.mlp[0]).out_features


def _window_order(height: int, width: int, window: int, shift: tuple[int, int]) -> Tensor:
    """Returns token numbers by window, int64 (windows, window * window), of a band whose rows and
    columns are rolled back by ``shift``: one gather with it both rolls and cuts into windows."""
    numbers = torch.arange(height * width).view(height, width)
    numbers = numbers.roll((-shift[0], -shift[1]), dims=(0, 1))
    cut = numbers.view(height // window, window, width // window, window).transpose(1, 2)
    return cut.reshape(-1, window * window)


def _band_mask(
    height: int, width: int, window: int, shift: int, device: torch.device, *, is_last: bool
) -> Tensor:
    """Returns the part of ``shift_mask`` for a band's windows; of all bands, only a map's last one
    holds rows that are neighbours through the roll alone."""
    if is_last:
        return shift_mask(height, width, window, shift, device)
    return shift_mask(height + window, width, window, shift, device)[: -(width // window)]
