"""Passes a photograph of any size through the restoration network, exactly, in bounded memory.

    pixels = restore_pixels(network, image)           # uint8 or uint16 (H, W, 3)

Tiles would not do, unless ``network.tile`` wants them: group normalisation sees a whole image, and
attention reaches across hundreds of pixels. The network therefore runs layer by layer on strips of
rows. Each strip includes the rows that its convolutions reach, the statistics of each normalisation
are gathered over all strips before it is applied, and the Swin bottleneck, whose windows don't
touch within a block, runs on bands of windows. The result is the network's on the whole image, to
rounding, whatever the strips. Only the photograph, its result and the maps between the layers are
ever whole, and maps that exceed the memory granted lie in scratch files (see ``feature_maps``). All
else takes what a strip needs, which grows with a photograph's width only where a few rows exceed
its room (see ``room``).
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets import QDMR
from qdmr_ray.nets.blocks import ResBlock
from qdmr_ray.nets.swin import SwinBlock, SwinGroup
from qdmr_ray.restore.feature_maps import Arena, FeatureMap, GroupStatistics, strips
from qdmr_ray.restore.progress import Progress, Work, fusing_layers
from qdmr_ray.restore.room import Room, as_room_allows, room_on
from qdmr_ray.restore.swin_bands import SwinBands
from qdmr_ray.restore.upsample_conv import Doubling
from qdmr_ray.stages.compute import (
    BFLOAT16,
    FLOAT32,
    ComputeSettings,
    autocast,
    tensor_float_32,
)

# The rows beyond a strip that one 3 x 3 convolution reaches; two in turn reach twice as many.
REACH = 1

# Receives the code that a network chose at each position of a photograph, int64 (h, w), without the
# positions that only its padding has.
Codes = Callable[[np.ndarray], None]


def restore_pixels(
    network: QDMR,
    image: np.ndarray,
    *,
    memory: int | None = None,
    bfloat16: bool = False,
    scratch: Path | None = None,
    progress: Progress | None = None,
    codes: Codes | None = None,
) -> np.ndarray:
    """Returns the corrected photograph, like ``image`` uint8 or uint16 (H, W, 3).

    ``network`` is in eval mode on its device. The maps between the layers take up to ``memory``
    bytes, by default 2 GiB, on a GPU what is free; larger ones lie in files in ``scratch`` (by
    default the system's temporary folder). A strip takes further memory, the same however high the
    photograph. ``bfloat16`` computes in autocast and halves the maps. ``progress`` receives the
    share that is done, strip by strip; where a GPU has too little memory, the photograph begins
    anew with smaller strips. ``codes`` is called once, with the chosen codes, where the network
    fuses a codebook's.
    """
    weight = next(network.parameters())
    device, stored = weight.device, torch.bfloat16 if bfloat16 else weight.dtype

    def corrected(room: Room) -> tuple[np.ndarray, np.ndarray | None]:
        with closing(Arena(room, device, stored, scratch)) as arena:
            work = _Pass(network, image, arena, room, progress, keeps_codes=codes is not None)
            return work.run(), work.codes

    compute = ComputeSettings(dtype=BFLOAT16 if bfloat16 else FLOAT32)
    # "float32" must mean float32: cuDNN's own default is TensorFloat-32, of 10 bits.
    with torch.inference_mode(), tensor_float_32(compute, device), autocast(compute, device):
        pixels, chosen = as_room_allows(room_on(device, memory), corrected)
    if codes is not None and chosen is not None:
        codes(chosen)
    return pixels


class _Pass:
    """The computation of one photograph."""

    def __init__(
        self,
        network: QDMR,
        image: np.ndarray,
        arena: Arena,
        room: Room,
        progress: Progress | None,
        *,
        keeps_codes: bool,
    ) -> None:
        self.network, self.image, self.arena, self.room = network, image, arena, room
        self.keeps_codes = keeps_codes
        # The chosen codes, once they are.
        self.codes: np.ndarray | None = None
        self.full_scale = float(np.iinfo(image.dtype).max)
        weight = next(network.parameters())
        self.device, self.type = weight.device, weight.dtype
        multiple = network.multiple
        self.row_at, self.column_at = (
            reflected(length, -(-length // multiple) * multiple) for length in image.shape[:2]
        )
        self.columns = torch.from_numpy(self.column_at).to(self.device)
        self.swin = SwinBands(room, self.device)
        self.work = Work(network, len(self.row_at), len(self.column_at), progress)

    def run(self) -> np.ndarray:
        features = self._encode()
        fuses = self.network.domain_mixing and self.network.settings.fusion
        tokens = self._fuse(features) if fuses else features
        for group in self.network.bottleneck.groups:
            tokens = self._swin_group(cast(SwinGroup, group), tokens)
        return self._decode(tokens)

    def _pixels(self, first: int, last: int) -> Tensor:
        """Returns rows of the padded image as (1, 3, n, width) in [0, 1]."""
        rows = self.image[self.row_at[first:last]]
        if rows.dtype != np.uint8:
            # PyTorch can do little with uint16; float32 holds each of its values.
            rows = rows.astype(np.float32)
        strip = torch.from_numpy(rows).to(self.device).index_select(1, self.columns)
        return (strip.to(self.type) / self.full_scale).permute(2, 0, 1).unsqueeze(0)

    def _encode(self) -> FeatureMap:
        """Runs all levels of the encoder. The first level computes the image's first convolution
        anew for each strip: it is cheap, and its map would be the largest of all."""
        encoder = self.network.encoder
        height, width = len(self.row_at), len(self.column_at)
        current: FeatureMap | None = None
        for level in encoder.levels:
            halving, *blocks = cast(nn.Sequential, level)
            height, width = height // 2, width // 2
            out = self.arena.new(cast(nn.Conv2d, halving).out_channels, height, width)
            begin = partial(self._halved, cast(nn.Conv2d, halving), current)
            self._blocks(out, halving, begin, blocks)
            if current is not None:
                self.arena.drop(current)
            current = out
        assert current is not None
        return current

    def _halved(
        self, halving: nn.Conv2d, below: FeatureMap | None, first: int, last: int
    ) -> Tensor:
        """Returns rows ``first`` .. ``last - 1`` after ``halving``; ``below`` None is the image."""
        height = len(self.row_at) if below is None else below.height
        # The first convolution reaches two rows down and makes its strip a row shorter.
        reach = 4 if below is None else 2
        begin, end = max(0, 2 * first - reach), min(height, 2 * last + reach)
        if below is None:
            x = self.network.encoder.first(self._pixels(begin, end))
        else:
            x = below.rows(begin, end)
        return halving(x)[:, :, first - begin // 2 : last - begin // 2]

    def _blocks(
        self,
        out: FeatureMap,
        layer: nn.Module,
        begin: Callable[[int, int], Tensor],
        blocks: list[nn.Module],
    ) -> None:
        """Fills ``out`` with the rows that ``begin`` computes by ``layer``, then applies residual
        blocks to it in place, each with the statistics of the whole map."""
        statistics = GroupStatistics(cast(ResBlock, blocks[0]).norm1) if blocks else None
        for first, last in out.strips():
            strip = begin(first, last)
            out.put(first, strip)
            if statistics:
                statistics.add(strip)
            self.work.did(layer, (last - first) * out.width)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            assert statistics is not None
            following_norm = cast(ResBlock, following).norm1 if following else None
            statistics = self._block(cast(ResBlock, block), out, statistics, following_norm)

    def _block(
        self,
        block: ResBlock,
        out: FeatureMap,
        statistics: GroupStatistics,
        following: nn.GroupNorm | None,
    ) -> GroupStatistics | None:
        """Runs one residual block in place; returns the statistics that the next normalisation
        needs. Where the first convolution's map doesn't fit into memory, it is computed twice."""
        affine = statistics.affine(self.type)
        shape = (out.channels, out.height, out.width)
        middle = self.arena.new(*shape) if self.arena.fits(*shape) else None

        def convolved(first: int, last: int, old: Callable[[int, int], Tensor]) -> Tensor:
            begin, end = max(0, first - REACH), min(out.height, last + REACH)
            h = block.conv1(_activated(old(begin, end), affine))
            return h[:, :, first - begin : h.shape[2] - (end - last)]

        inner = GroupStatistics(block.norm2)
        for first, last in out.strips():
            h = convolved(first, last, out.rows)
            inner.add(h)
            if middle is not None:
                middle.put(first, h)
            self.work.did(block.conv1, (last - first) * out.width)
        affine2 = inner.affine(self.type)
        after = GroupStatistics(following) if following else None
        old = _Overwritten(out, reach=2 * REACH)
        for first, last in out.strips():
            begin, end = max(0, first - REACH), min(out.height, last + REACH)
            h = middle.rows(begin, end) if middle else convolved(begin, end, old.rows)
            h = block.conv2(_activated(h, affine2))[:, :, first - begin : last - begin]
            old.keep(first, last)
            strip = out.add(first, h)
            if after:
                after.add(strip)
            self.work.did(block.conv2, (last - first) * out.width)
        if middle is not None:
            self.arena.drop(middle)
        return after

    def _fuse(self, features: FeatureMap) -> FeatureMap:
        """Finds each position's code and fuses it with the features."""
        network = self.network
        out = self.arena.new(features.channels, features.height, features.width)
        chosen = []
        for first, last in features.strips():
            begin, end = max(0, first - REACH), min(features.height, last + REACH)
            x = features.rows(begin, end)
            z = network.before_quant(x).movedim(1, -1)
            indices = network.quantizer.nearest(z.flatten(0, -2).float()).view(z.shape[:-1])
            q = network.after_quant(network.quantizer.lookup(indices))
            inside = slice(first - begin, last - begin)
            if self.keeps_codes:
                chosen.append(indices[0, inside].cpu())
            out.put(first, network.fusion(x[:, :, inside], q[:, :, inside]))
            for layer in fusing_layers(network):
                self.work.did(layer, (last - first) * out.width)
        self.arena.drop(features)
        if self.keeps_codes:
            size, downsampling = self.image.shape[:2], network.settings.downsampling
            self.codes = without_padding(torch.cat(chosen), size, downsampling)
        return out

    def _swin_group(self, group: SwinGroup, features: FeatureMap) -> FeatureMap:
        """Runs the blocks in a map of their own, since the group's input is added at its end."""
        tokens = self.arena.new(features.channels, features.height, features.width)
        before = features
        for layer in group.blocks:
            self.swin.block(cast(SwinBlock, layer), before, tokens)
            before = tokens
            self.work.did(layer, tokens.height * tokens.width)
        # In place, since the group's input is needed row by row only.
        for first, last in features.strips():
            features.add(first, _convolved(group.conv, tokens, first, last))
            self.work.did(group.conv, (last - first) * features.width)
        self.arena.drop(tokens)
        return features

    def _decode(self, current: FeatureMap) -> np.ndarray:
        decoder = self.network.decoder
        for level in decoder.levels:
            _, convolution, *blocks = cast(nn.Sequential, level)
            height, width = 2 * current.height, 2 * current.width
            out = self.arena.new(cast(nn.Conv2d, convolution).out_channels, height, width)
            begin = partial(_doubled, Doubling(cast(nn.Conv2d, convolution)), current)
            self._blocks(out, convolution, begin, blocks)
            self.arena.drop(current)
            current = out
        return self._finish(current)

    def _finish(self, features: FeatureMap) -> np.ndarray:
        """Runs the last convolution and rounds its result to the photograph's own type."""
        result = np.empty_like(self.image)
        height, width = self.image.shape[:2]
        for first, last in strips(height, features.row_bytes, self.room):
            x = _convolved(self.network.decoder.last, features, first, last).to(self.type)
            if self.network.settings.global_residual:
                x = x + self._pixels(first, last)
            pixels = x[0, :, :, :width].clamp(0, 1).permute(1, 2, 0)
            result[first:last] = as_integers(pixels, result.dtype)
            self.work.did(self.network.decoder.last, (last - first) * features.width)
        self.arena.drop(features)
        return result


class _Overwritten:
    """The former rows of a map that is being overwritten from top to bottom."""

    def __init__(self, features: FeatureMap, reach: int) -> None:
        self._features, self._reach = features, reach
        self._kept: Tensor | None = None
        self._written = 0

    def keep(self, first: int, last: int) -> None:
        """Must be called before rows ``first`` .. ``last - 1`` are written."""
        self._kept = self.rows(max(0, last - self._reach), last).clone()
        self._written = last

    def rows(self, first: int, last: int) -> Tensor:
        """As ``FeatureMap.rows``; ``first`` lies at most ``reach`` rows above what is written."""
        if first >= self._written or self._kept is None:
            return self._features.rows(first, last)
        kept = self._kept[:, :, self._kept.shape[2] - (self._written - first) :]
        if last <= self._written:
            return kept[:, :, : last - first]
        return torch.cat([kept, self._features.rows(self._written, last)], dim=2)


def _convolved(layer: nn.Module, below: FeatureMap, first: int, last: int) -> Tensor:
    """Returns rows ``first`` .. ``last - 1`` of a 3 x 3 convolution of ``below``."""
    begin, end = max(0, first - REACH), min(below.height, last + REACH)
    return layer(below.rows(begin, end))[:, :, first - begin : last - begin]


def _doubled(double: Doubling, below: FeatureMap, first: int, last: int) -> Tensor:
    """Returns rows ``first`` .. ``last - 1`` of ``below`` enlarged by ``double``."""
    begin = max(0, first // 2 - REACH)
    end = min(below.height, -(-last // 2) + REACH)
    return double(below.rows(begin, end))[:, :, first - 2 * begin : last - 2 * begin]


def _activated(x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    scale, shift = affine
    return nn.functional.silu(torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype)), inplace=True)


def without_padding(indices: Tensor, size: Sequence[int], downsampling: int) -> np.ndarray:
    """Returns the part of a map of codes (h, w) whose positions lie in an image of ``size``, its
    height and width."""
    height, width = (-(-length // downsampling) for length in size)
    return indices[:height, :width].numpy()


def reflected(length: int, wanted: int) -> np.ndarray:
    """Returns positions 0 … length - 1, back to 0, and so on, int64 (wanted,)."""
    if length == 1:
        return np.zeros(wanted, dtype=np.int64)
    period = 2 * (length - 1)
    positions = np.arange(wanted) % period
    return np.minimum(positions, period - positions)


def as_integers(image: Tensor, kind: np.dtype) -> np.ndarray:
    """Rounds values in [0, 1] to integers of a type, whose largest is 1, on the image's device;
    raises QdmrError where one is NaN, which would become black."""
    values = (image * np.iinfo(kind).max).round()
    if values.isnan().any():
        raise QdmrError(
            "the network computed values that are not numbers: its weights are too large, or the "
            "training that made them had diverged; take other weights"
        )
    # PyTorch can do little with uint16.
    integers = values.to(torch.uint8 if kind == np.uint8 else torch.int32)
    return integers.cpu().numpy().astype(kind, copy=False)
