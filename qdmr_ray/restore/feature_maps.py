"""Feature maps of whole photographs, read and written in strips of rows; maps that exceed the
memory granted lie in unnamed temporary files.

Rows are stored with their channels innermost, so that a strip is contiguous and PyTorch's
channels-last convolutions take it without a copy.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets.blocks import at_least_float32
from qdmr_ray.restore.room import Room

# A strip has at least so many rows: those of its neighbours that a convolution reaches are computed
# once more.
FEWEST_ROWS = 32
# Halvings and doublings need strips that begin and end at even rows.
_ROW_MULTIPLE = 2


def strips(
    height: int,
    row_bytes: int,
    room: Room,
    *,
    multiple: int = _ROW_MULTIPLE,
    fewest: int = FEWEST_ROWS,
) -> Iterator[tuple[int, int]]:
    """Yields ranges of rows that cover ``height``, each but the last as high as ``room`` allows."""
    rows = room.rows(row_bytes, multiple=multiple, fewest=fewest)
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


class FeatureMap:
    """A photograph's map (channels, height, width) of ``dtype``, on ``device`` or in a file."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        room: Room,
        folder: Path | None,
    ) -> None:
        self.channels, self.height, self.width = shape
        self.dtype, self.device, self._room = dtype, device, room
        self._rows: Tensor | None = None
        self._file = -1
        if folder is None:
            self._rows = torch.empty(*shape[1:], shape[0], dtype=dtype, device=device)
            return
        try:
            # Unlinked at once, so that the space is free again however the process ends.
            self._file, name = tempfile.mkstemp(prefix="qdmr-", dir=folder)
            os.unlink(name)
            # Reserved now: a full disk must raise its error before hours of work.
            reserve = getattr(os, "posix_fallocate", lambda file, _, size: os.truncate(file, size))
            reserve(self._file, 0, self.nbytes)
        except OSError as error:
            self.close()
            raise QdmrError(
                f"{folder}: a scratch file of {self.nbytes / 2**30:.1f} GiB cannot be made "
                f"({error.strerror}); name another folder, or grant more memory"
            ) from error

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.channels * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole map."""
        return self.height * self.row_bytes

    def strips(self) -> Iterator[tuple[int, int]]:
        """Yields ranges of rows that cover the map."""
        return strips(self.height, self.row_bytes, self._room)

    def rows(self, first: int, last: int) -> Tensor:
        """Returns rows ``first`` .. ``last - 1`` as (1, channels, n, width) on the device; callers
        must not change them."""
        if self._rows is not None:
            strip = self._rows[first:last]
        else:
            buffer = np.empty((last - first) * self.row_bytes, dtype=np.uint8)
            self._transfer(os.preadv, buffer.data, first)
            shape = (last - first, self.width, self.channels)
            strip = torch.from_numpy(buffer).view(self.dtype).view(shape).to(self.device)
        return strip.permute(2, 0, 1).unsqueeze(0)

    def put(self, first: int, values: Tensor) -> None:
        """Writes ``values`` (1, channels, n, width) from row ``first`` on."""
        strip = values[0].permute(1, 2, 0)
        if self._rows is None:
            data = strip.to("cpu", self.dtype).contiguous()
            self._transfer(os.pwritev, data.view(torch.uint8).numpy().reshape(-1).data, first)
        elif strip.shape == self._rows.shape:
            # A tensor of the whole map becomes the map, without a copy.
            self._rows = strip.to(self.dtype).contiguous()
        else:
            self._rows[first : first + len(strip)] = strip

    def add(self, first: int, values: Tensor) -> Tensor:
        """Adds ``values`` (1, channels, n, width) from row ``first`` on; returns the sum."""
        last = first + values.shape[2]
        if self._rows is None:
            total = self.rows(first, last) + values
            self.put(first, total)
            return total
        self._rows[first:last] += values[0].permute(1, 2, 0)
        return self.rows(first, last)

    def close(self) -> None:
        """Frees the memory and closes the file."""
        self._rows = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _transfer(self, call: object, view: memoryview, first: int) -> None:
        """Repeats preadv or pwritev, one call of which may stop short of 2 GiB."""
        done = 0
        while done < len(view):
            moved = call(self._file, [view[done:]], first * self.row_bytes + done)  # type: ignore[operator]
            if moved <= 0:
                raise QdmrError("a scratch file ended early; is its disk full?")
            done += moved


class Arena:
    """Makes feature maps, in memory as long as ``room`` has bytes for them."""

    def __init__(
        self, room: Room, device: torch.device, dtype: torch.dtype, folder: Path | None = None
    ) -> None:
        self._free = room.maps
        self._room, self._device, self._dtype = room, device, dtype
        self._folder = folder or Path(tempfile.gettempdir())
        self._maps: set[FeatureMap] = set()

    def new(self, channels: int, height: int, width: int) -> FeatureMap:
        """Returns a map whose contents are undefined."""
        fits, shape = self.fits(channels, height, width), (channels, height, width)
        folder = None if fits else self._folder
        made = FeatureMap(shape, self._dtype, self._device, self._room, folder)
        self._free -= made.nbytes if fits else 0
        self._maps.add(made)
        return made

    def fits(self, channels: int, height: int, width: int) -> bool:
        """Returns whether such a map would lie in memory."""
        return channels * height * width * self._dtype.itemsize <= self._free

    def drop(self, used: FeatureMap) -> None:
        """Closes the map and reclaims its room."""
        if used._rows is not None:
            self._free += used.nbytes
        self._maps.remove(used)
        used.close()

    def close(self) -> None:
        """Closes the maps that are left, those of a photograph that failed."""
        while self._maps:
            self._maps.pop().close()


class GroupStatistics:
    """Mean and variance of a group normalisation's groups over a whole map, gathered from strips by
    Chan, Golub and LeVeque's formula in float64."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self._norm = norm
        self._count = 0
        # On the device, since a copy to the host would wait for all that the GPU has to do before.
        zeros = torch.zeros(2, norm.num_channels, dtype=torch.float64, device=norm.weight.device)
        self._mean, self._squares = zeros

    def add(self, strip: Tensor) -> None:
        """Includes a strip (1, C, n, width); each row may be included only once."""
        # Batch normalisation's own reduction is twenty times as fast as var_mean on these layouts.
        mean, variance = torch.batch_norm_update_stats(at_least_float32(strip), None, None, 0.0)
        mean, variance = mean.double(), variance.double()
        count = strip.shape[2] * strip.shape[3]
        total = self._count + count
        apart = mean - self._mean
        self._squares += variance * count + apart.square() * (self._count * count / total)
        self._mean += apart * (count / total)
        self._count = total

    def affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns scale and shift (1, C, 1, 1) that normalise with these statistics."""
        norm = self._norm
        means = self._mean.view(norm.num_groups, -1)
        mean = means.mean(1, keepdim=True)
        within = self._squares.view(norm.num_groups, -1) / self._count
        variance = (within + (means - mean).square()).mean(1, keepdim=True)
        deviation = (variance + norm.eps).sqrt().expand_as(means).reshape(-1)
        scale = norm.weight.detach().double() / deviation
        shift = norm.bias.detach().double() - mean.expand_as(means).reshape(-1) * scale
        scale, shift = (v.view(1, -1, 1, 1).to(dtype) for v in (scale, shift))
        return scale, shift
