"""The recipe behind the golden values: weights and images that any program can make again.

The authors' public code produced the golden values in float64; ``qdmr verify`` compares this
package's results with them.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdmr_ray.errors import QdmrError
from qdmr_ray.nets.adapter import from_authors
from qdmr_ray.untrusted import open_npz, parse_json, read_regular

# Last name parts of the authors' state-dict entries that hold constants instead of weights.
CONSTANTS = ("attn_mask", "mean", "std")


@dataclass(frozen=True)
class Golden:
    """The files of one folder of golden values."""

    keys: dict[str, list[list[Any]]]
    recipe: dict[str, Any]
    forward: Mapping[str, np.ndarray]
    steps: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """The worst ``difference`` from the golden value called ``figure``, and the allowed one."""

    figure: str
    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is allowed; NaN never is."""
        return self.difference <= self.allowed


def load_golden(folder: Path) -> Golden:
    """Reads the golden values; raises QdmrError where a file is missing or unreadable."""
    names = ("state_dict_keys", "recipe", "train_steps", "metrics")
    try:
        keys, recipe, steps, metrics = (
            parse_json(read_regular(folder / f"{name}.json")[0]) for name in names
        )
        with open_npz(folder / "forward.npz") as arrays:
            forward = dict(arrays)
    except (OSError, ValueError) as error:
        raise QdmrError(
            f"{folder} holds no readable golden figures ({error}): give the folder with "
            "recipe.json, state_dict_keys.json, forward.npz, train_steps.json and metrics.json"
        ) from error
    return Golden(keys=keys, recipe=recipe, forward=forward, steps=steps, metrics=metrics)


def golden_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float64 values of the entry ``key``, by the first rule that matches."""
    a = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith(("weight_u", "weight_v")):
        return a / np.linalg.norm(a)
    if key.endswith(("bias", "bias_table")):
        return 0.02 * a
    if len(shape) == 1:
        return 1 + 0.1 * a
    if "embedding" in key:
        return a / 2
    return a / np.sqrt(np.prod(shape[1:]))


def golden_state(golden: Golden, kind: str) -> dict[str, Tensor]:
    """Returns our float64 state dict of the network ``kind``, filled by the recipe."""
    theirs = {
        key: torch.from_numpy(np.asarray(golden_array(key, tuple(shape))))
        for key, shape, dtype in golden.keys[kind]
        if dtype.startswith("float") and key.rsplit(".", 1)[-1] not in CONSTANTS
    }
    return from_authors(kind, theirs)


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the entries below ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def golden_image(seed: int, count: int, height: int, width: int) -> Tensor:
    """Returns random images (count, 3, height, width), float64 in [0, 1)."""
    return torch.from_numpy(np.random.default_rng(seed).random((count, 3, height, width)))


def relative_difference(found: float, wanted: float) -> float:
    """Returns ``|found - wanted|`` over ``|wanted|``."""
    return abs(found - wanted) / max(abs(wanted), np.finfo(float).tiny)


def worst(differences: Iterable[float]) -> float:
    """Returns the largest difference, or NaN where any is NaN, which ``max`` would pass over."""
    return float(np.max(list(differences)))
