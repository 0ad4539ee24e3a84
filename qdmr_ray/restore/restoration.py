"""Correcting whole photographs of any size, as tensors or arrays; no Ray.

from qdmr_ray.evaluate import (restore)
corrected = restore(image, Path("runs/demo/uda/final"))
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.models.files import LoadedModel, load_model
from qdmr_ray.nets import QDMR, VQGAN, RestorationNetwork
from qdmr_ray.nets.registry import STREAMED, image_of
from qdmr_ray.restore.streamed import (
    Codes,
    as_integers,
    reflected,
    restore_pixels,
    without_padding,
)
from qdmr_ray.restore.tiled import TILE, restore_tiled, tile_places
from qdmr_ray.stages.compute import (
    BFLOAT16,
    FLOAT32,
    ComputeSettings,
    autocast,
    tensor_float_32,
)
from qdmr_ray.storage import Location

# The place of a stage's result, or that result loaded.
Checkpoint = Path | str | Location | LoadedModel


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pads ``(..., H, W)`` right and bottom by reflection; also returns ``(H, W)`` for cropping. An
    image smaller than the padding is reflected repeatedly, to and fro; a side of one pixel, which
    has nothing to reflect, is repeated."""
    height, width = int(x.shape[-2]), int(x.shape[-1])
    padded = x
    for axis, length in ((-2, height), (-1, width)):
        wanted = -(-length // multiple) * multiple
        if wanted != length:
            positions = torch.from_numpy(reflected(length, wanted)).to(x.device)
            padded = padded.index_select(axis, positions)
    return padded, (height, width)


def restore_tensor(network: nn.Module, x: Tensor, codes: Codes | None = None) -> Tensor:
    """Returns the corrected images ``(B, 3, H, W)``, clamped to [0, 1], of any height and width.
    ``network`` is a ``RestorationNetwork`` or a VQGAN; ``x`` is RGB in [0, 1] of the network's type
    and on its device. ``codes`` receives those that the network chooses from a codebook, for one
    image after the other."""
    padded, (height, width) = pad_to_multiple(x, network.multiple)  # type: ignore[arg-type]
    was_training = network.training
    network.eval()
    try:
        # "float32" must mean float32: cuDNN's own default is TensorFloat-32, of 10 bits.
        with torch.inference_mode(), tensor_float_32(ComputeSettings(), x.device):
            output = network(padded)
    finally:
        network.train(was_training)
    if codes is not None and _shows_codes(network):
        for indices in output.indices.cpu():
            codes(without_padding(indices, (height, width), network.settings.downsampling))
    image = image_of(output)
    return image[..., :height, :width].clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class RestoreSettings:
    """How photographs are computed: maps between the layers take up to ``memory`` bytes, by default
    2 GiB, on a GPU what is free, and those that exceed it lie in files in the folder ``scratch``;
    ``dtype`` is float32 or bfloat16; files are restored on ``device``, by default a GPU where there
    is one."""

    memory: int | None = None
    scratch: Path | None = None
    dtype: str = FLOAT32
    device: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (FLOAT32, BFLOAT16):
            raise SettingsError(f"dtype {self.dtype}: choose {FLOAT32} or {BFLOAT16}")
        if self.scratch is not None and not self.scratch.is_dir():
            raise SettingsError(f"the scratch folder {self.scratch} is not there: make it first")


def restore(
    image: np.ndarray,
    checkpoint: Checkpoint,
    settings: RestoreSettings | None = None,
    progress: Callable[[float], None] | None = None,
    codes: Codes | None = None,
) -> np.ndarray:
    """Corrects one photograph, uint8 or uint16 ``(H, W, 3)`` RGB; the result has the same type.

    ``checkpoint`` is a stage's result: a path, read anew on each call, or what
    ``qdmr_ray.models.files.load_model`` returned, whose network runs on the device where it is.
    QDMR's result is that of the network on the whole image, however large, in bounded memory (see
    ``streamed``); other networks, and those with ``network.tile``, correct overlapping tiles (see
    ``tiled``). A VQGAN returns the image in the style of the target domain. ``progress`` receives
    the share that is done, ``codes`` the codes that the photograph chose, once, from a VQGAN or
    from a codebook that QDMR fuses.
    Raises QdmrError where the image has another type or shape, or the checkpoint is unusable.
    """
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
        raise QdmrError(
            "restore takes uint8 or uint16 images of shape (H, W, 3); this one is "
            f"{image.dtype} {tuple(image.shape)}: convert it first"
        )
    if image.size == 0:
        raise QdmrError(f"restore was given an image without pixels, shape {tuple(image.shape)}")
    network = loaded(checkpoint).network
    settings = settings or RestoreSettings()
    tile = network.settings.tile if isinstance(network, QDMR | VQGAN) else None
    if isinstance(network, QDMR) and network.restored == STREAMED and tile is None:
        was_training = network.training
        # A network in training keeps its layout, which decides how its sums are rounded.
        laid_out = network if was_training else network.to(memory_format=torch.channels_last)
        try:
            return restore_pixels(
                laid_out.eval(),
                image,
                memory=settings.memory,
                scratch=settings.scratch,
                bfloat16=settings.dtype == BFLOAT16,
                progress=progress,
                codes=codes,
            )
        finally:
            network.train(was_training)
    parameter = next(network.parameters())
    full_scale = np.iinfo(image.dtype).max
    # Converted through float32, which holds every uint16 exactly and exists on every device.
    pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)).unsqueeze(0)
    x = (pixels / full_scale).to(device=parameter.device, dtype=parameter.dtype)
    if tile is None and isinstance(network, RestorationNetwork):
        tile = TILE
    if tile is not None:
        with autocast(ComputeSettings(dtype=settings.dtype), x.device):
            corrected = _in_tiles(network, x, tile, progress, codes)
    else:
        corrected = restore_tensor(network, x, codes)
    return as_integers(corrected[0].permute(1, 2, 0).float(), image.dtype)


def _shows_codes(network: nn.Module) -> TypeGuard[QDMR | VQGAN]:
    """Whether the image depends on the codes that the network chooses."""
    if isinstance(network, QDMR):
        return network.domain_mixing and network.settings.fusion
    return isinstance(network, VQGAN)


def _in_tiles(
    network: RestorationNetwork | VQGAN,
    x: Tensor,
    tile: int,
    progress: Callable[[float], None] | None,
    codes: Codes | None,
) -> Tensor:
    """Returns the corrected image (1, 3, H, W) of ``x``; ``codes`` receives those of all tiles, in
    one map."""
    chosen: list[np.ndarray] = []
    if isinstance(network, QDMR | VQGAN):
        # The lattice of the features is the same in all tiles.
        step: int = network.settings.downsampling
        overlap = tile // 4 // step * step
    else:
        step, overlap = 1, network.overlap
    corrected = restore_tiled(
        partial(restore_tensor, network, codes=chosen.append if codes else None),
        x,
        multiple=network.multiple,
        overlap=overlap,
        tile=tile,
        progress=progress,
    )
    if codes is not None and chosen:
        height, width = (-(-length // step) for length in x.shape[-2:])
        whole = np.empty((height, width), dtype=np.int64)
        places = tile_places(x.shape[-2:], tile, overlap)
        for (top, left), part in zip(places, chosen, strict=True):
            row, column = top // step, left // step
            whole[row : row + part.shape[0], column : column + part.shape[1]] = part
        codes(whole)
    return corrected


def loaded(checkpoint: Checkpoint) -> LoadedModel:
    """Returns the model itself, read if ``checkpoint`` is its place."""
    return checkpoint if isinstance(checkpoint, LoadedModel) else load_model(checkpoint)
