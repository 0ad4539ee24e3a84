"""Plans which sample has which position in an endless stream: arithmetic, no files, no Ray.

The sample at global position p is a function of (seed, p) alone: which record of each set, where
the crop lies, how it is flipped. So a run can stop and go on, and change its number of workers,
without losing or repeating a sample. Nothing is stored: the order of a set is a keyed pseudo-random
permutation that is computed for the positions asked for.

- A set of N records is passed in epochs: positions e*N .. e*N + N-1 hold every record once, in an
  order that depends on (seed, set, e). The shorter set simply has more epochs.
- Crop corners are uniform over the image. Flips and transpose have probability 1/2 each (METHOD.md,
  "Stages") and are the same for all images of a sample. Augmentation is applied in the order
  horizontal flip, vertical flip, transpose.
- A sample is a source pair or a target image, so the two sets draw corners and flips independently.
  With ``same_place`` both draws are shared: the crops have one place in the lens's field of view,
  the same coordinates where sizes agree and the same relative place where they do not. Flips and
  transpose are then shared too, because an aberration such as coma points away from the axis:
  turning one crop only would undo what the common place is for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qdmr_ray.errors import QdmrError

# Constants of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
# OOPSLA 2014), a bijection of 64-bit numbers whose output bits are well mixed.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_MASK_64 = (1 << 64) - 1
_HALF = np.uint64(32)

# Purposes of the random numbers. Changing a number changes every recorded run.
_ORDER, _TOP, _LEFT, _AUGMENT = 1, 2, 3, 4
_SET_KEYS = {"source": 1, "target": 2, "test": 3}
_SHARED_KEY = 0

# Four rounds make a Feistel network indistinguishable from random for most uses (Luby and Rackoff
# 1988); two more cost little and help the tiny halves of small sets.
_ROUNDS = 6
# With halves of fewer than 3 bits a Feistel network reaches only some of the orders.
_MINIMUM_HALF_BITS = 3


@dataclass(frozen=True, slots=True)
class Crop:
    """One sample of one set: record, corner and augmentation."""

    index: int
    top: int
    left: int
    flip_horizontal: bool
    flip_vertical: bool
    transpose: bool


@dataclass(frozen=True)
class Portion:
    """One worker's samples of an iteration: ``count`` of ``total``, from ``first`` on. Workers
    share one global order of samples whatever their number."""

    first: int
    count: int
    total: int

    def positions(self, first: int, end: int) -> np.ndarray:
        """Returns the global positions, int64 (n * count,), of the worker's samples in the n
        iterations ``first`` .. ``end - 1``, in order."""
        begin = np.arange(first, end, dtype=np.int64) * self.total + self.first
        return (begin[:, None] + np.arange(self.count, dtype=np.int64)).reshape(-1)


@dataclass(frozen=True)
class Crops:
    """The fields of ``Crop`` for n positions: int64 and bool, each (n,)."""

    index: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip_horizontal: np.ndarray
    flip_vertical: np.ndarray
    transpose: np.ndarray

    def rows(self) -> list[Crop]:
        """Returns the samples one by one."""
        return [
            Crop(*row)
            for row in zip(*(column.tolist() for column in vars(self).values()), strict=True)
        ]


class CropPlan:
    """The endless plan over one or more sets. ``sizes`` maps each set's name to the heights and
    widths of its records, integers (N,) each; ``label``, where given, names a record (set, index)
    in error messages. Raises QdmrError where a set is empty or an image smaller than ``crop``."""

    def __init__(
        self,
        sizes: Mapping[str, tuple[np.ndarray, np.ndarray]],
        *,
        crop: int,
        same_place: bool,
        seed: int,
        label: Callable[[str, int], str] = lambda _, index: str(index),
    ) -> None:
        # Not copied: for millions of records the arrays are views of a mapped file.
        self._sizes = dict(sizes)
        self._crop, self._same_place, self._seed = crop, same_place, seed
        for name, (heights, widths) in sizes.items():
            if len(heights) == 0:
                raise QdmrError(f"the {name} set is empty; pack at least one image")
            if min(heights.min(), widths.min()) < crop:
                first = int(np.flatnonzero(np.minimum(heights, widths) < crop)[0])
                raise QdmrError(
                    f"{name} image {label(name, first)} is {widths[first]} x {heights[first]} "
                    f"pixels, smaller than the crop of {crop}; lower the setting crop or leave "
                    "such images out"
                )

    def at(self, positions: np.ndarray) -> dict[str, Crops]:
        """Returns the samples at global ``positions``, int64 (n,) and not negative, by set name."""
        return {name: self.of_set(name, positions) for name in self._sizes}

    def of_set(self, name: str, positions: np.ndarray) -> Crops:
        """Returns the samples of one set."""
        positions = np.asarray(positions)
        if positions.size and positions.min() < 0:
            raise ValueError("positions must not be negative")
        positions = positions.astype(np.uint64)
        return self._crops(name, positions, self._indices(name, positions))

    def instead(self, name: str, position: int, index: int) -> Crop:
        """Returns the sample at ``position`` with record ``index`` in the place of the planned one:
        at the same relative place, augmented alike."""
        return self._crops(name, np.array([position], dtype=np.uint64), np.array([index])).rows()[0]

    def _crops(self, name: str, positions: np.ndarray, index: np.ndarray) -> Crops:
        heights, widths = self._sizes[name]
        key = _SHARED_KEY if self._same_place else _SET_KEYS[name]
        top, left, augment = (
            _random(positions, self._seed, key, purpose) for purpose in (_TOP, _LEFT, _AUGMENT)
        )
        flips = (((augment >> np.uint64(bit)) & np.uint64(1)).astype(bool) for bit in range(3))
        rooms = (sides[index].astype(np.int64) - self._crop + 1 for sides in (heights, widths))
        return Crops(index, *map(_below, (top, left), rooms), *flips)

    def _indices(self, name: str, positions: np.ndarray) -> np.ndarray:
        count = len(self._sizes[name][0])
        epoch, place = np.divmod(positions, np.uint64(count))
        keys = _random(epoch, self._seed, _SET_KEYS[name], _ORDER)
        return permute(place, count, keys).astype(np.int64)


def permute(values: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Maps each of ``values`` (uint64 (n,), below ``count``) by the permutation of its key.

    For one key this is a bijection of 0 .. count-1: a Feistel network over the next larger power of
    four, walked until it comes back into the range (Black and Rogaway, CT-RSA 2002). It takes
    memory for ``values`` only, whatever ``count`` is; at most four rounds of walking on average for
    sets above 16 records.
    """
    half_bits = max(-(-(count - 1).bit_length() // 2), _MINIMUM_HALF_BITS)
    walked = np.array(values, dtype=np.uint64)
    pending = np.arange(walked.size)
    while pending.size:
        walked[pending] = _feistel(walked[pending], half_bits, keys[pending])
        pending = pending[walked[pending] >= np.uint64(count)]
    return walked


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_number in range(_ROUNDS):
        round_keys = keys + np.uint64((round_number * _GOLDEN) & _MASK_64)
        left, right = right, left ^ (_mix(_mix(right) + round_keys) & mask)
    return (left << shift) | right


def _random(values: np.ndarray, seed: int, key: int, purpose: int) -> np.ndarray:
    """Returns uint64 (n,), well mixed, a function of the four arguments."""
    start = np.array([seed & _MASK_64], dtype=np.uint64)
    for part in (key, purpose):
        start = _mix(start + np.uint64((part * _GOLDEN + 1) & _MASK_64))
    return _mix(_mix(values + np.uint64(_GOLDEN)) + start)


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> _SHIFTS[0])) * _MIX_1
    values = (values ^ (values >> _SHIFTS[1])) * _MIX_2
    return values ^ (values >> _SHIFTS[2])


def _below(random: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Returns int64 (n,), uniform over 0 .. limit-1; the same number gives the same relative place.
    The upper 32 bits are used as a fraction, so images must be below 2**31 pixels a side; the bias
    is below 2**-18 for sides up to 16,384."""
    return (((random >> _HALF) * limits.astype(np.uint64)) >> _HALF).astype(np.int64)
