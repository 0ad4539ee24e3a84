"""Corrects a photograph of any size tile by tile, for networks that can't run layer by layer and
for those that are to see no more of it than a crop of their training (``network.tile``).

Neighbouring tiles share ``overlap`` pixels. The quarter of these next to a tile's edge isn't used,
since the network didn't see what lies beyond the edge; the half in the middle blends linearly from
one tile to the other. The result equals the network on the whole photograph where no output pixel
depends on input farther away than a quarter of ``overlap``, and has no visible seams where farther
input matters little. A network that looks at the whole image (global attention, group
normalisation) differs from tile to tile: where the whole is wanted, it needs
``qdmr_ray.restore.streamed``.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

# Side of a tile in pixels: a few hundred MB of activations for networks of usual width.
TILE = 512


def restore_tiled(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    multiple: int,
    overlap: int,
    tile: int = TILE,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Returns the corrected image (1, 3, H, W) of ``x``, on the CPU in float32, unclamped;
    ``network`` corrects images of up to ``tile`` a side, rounded up to a multiple of ``multiple``,
    and ``progress`` receives the share of tiles that are done."""
    height, width = x.shape[-2:]
    side = -(-max(tile, 2 * overlap) // multiple) * multiple
    rows = list(_spans(height, side, overlap))
    columns = list(_spans(width, side, overlap))
    restored = torch.zeros(1, 3, height, width)
    for i, (top, bottom) in enumerate(rows):
        down = _weights(top, bottom, height, overlap)
        for j, (left, right) in enumerate(columns):
            across = _weights(left, right, width, overlap)
            part = network(x[..., top:bottom, left:right]).float().cpu()
            restored[..., top:bottom, left:right] += part * down[:, None] * across
            if progress is not None:
                progress((i * len(columns) + j + 1) / (len(rows) * len(columns)))
    return restored


def tile_places(size: Sequence[int], side: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yields the upper left corner of each tile of an image of ``size``, its height and width, in
    the order in which ``restore_tiled`` takes them."""
    for top, _ in _spans(size[0], side, overlap):
        for left, _ in _spans(size[1], side, overlap):
            yield top, left


def _spans(length: int, side: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yields first and last + 1 pixel of each tile along one axis; the last one may be shorter."""
    first = 0
    while first + side < length:
        yield first, first + side
        first += side - overlap
    yield first, length


def _weights(first: int, end: int, length: int, overlap: int) -> Tensor:
    """Returns the weights of a tile's pixels along one axis (end - first,); neighbours sum to 1."""
    positions = np.arange(first, end) + 0.5
    weights = np.ones(end - first)
    margin, ramp = overlap / 4, overlap / 2
    if overlap and first > 0:
        weights *= np.clip((positions - first - margin) / ramp, 0, 1)
    if overlap and end < length:
        weights *= np.clip((end - positions - margin) / ramp, 0, 1)
    return torch.from_numpy(weights.astype(np.float32))
