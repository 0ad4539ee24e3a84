"""Correcting whole photographs of any size, as tensors, arrays or files; no Ray.

from qdmr_ray.evaluate import (restore)
corrected = restore(image, Path("runs/demo/uda/final"))
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from qdmr_ray.photographs.decode import IMAGE_SUFFIXES
from qdmr_ray.photographs.files import check_fits, read_photograph, write_photograph
from qdmr_ray.restore.device import usable_device
from qdmr_ray.restore.inputs import Failure, expand, failure_of
from qdmr_ray.restore.streamed import (
    DEFAULT_MEMORY,
    Codes,
    as_integers,
    reflected,
    restore_pixels,
    without_padding,
)
from qdmr_ray.restore.tiled import TILE, restore_tiled, tile_places
from qdmr_ray.stages.compute import ComputeSettings, tensor_float_32
from qdmr_ray.storage import TEMPORARY_PREFIX, Location
from qdmr_ray.storage.names import MOST_NAME_BYTES

# The place of a stage's result, or that result loaded.
Checkpoint = Path | str | Location | LoadedModel

# Device and number of a file; None where there is none.
Identity = tuple[int, int] | None

FLOAT32, BFLOAT16 = "float32", "bfloat16"

# An address in a store, which has only one slash left as a Path.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")


class Report:
    """Receives the events of ``restore_files`` as they happen; a subclass may show some."""

    def begun(self, path: Path, number: int, total: int) -> None:
        """Work on a photograph, the ``number``-th of ``total``, begins."""

    def advanced(self, share: float) -> None:
        """The ``share``, 0 .. 1, of that photograph's arithmetic is done."""

    def restored(self, path: Path, result: Path, lost: Sequence[str]) -> None:
        """The photograph is done; ``lost`` names what its file has no room for, a line each."""

    def failed(self, failure: Failure) -> None:
        """A photograph can't be corrected, or something named holds no photograph."""


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
    """How photographs are computed: maps between the layers take up to ``memory`` bytes, and those
    that exceed it lie in files in the folder ``scratch``; ``dtype`` is float32 or bfloat16; files
    are restored on ``device``, by default a GPU where there is one."""

    memory: int = DEFAULT_MEMORY
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
    network = _loaded(checkpoint).network
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
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.dtype == BFLOAT16):
            corrected = _in_tiles(network, x, tile, progress, codes)
    else:
        corrected = restore_tensor(network, x, codes)
    restored = corrected[0].permute(1, 2, 0).float().cpu().numpy()
    return as_integers(restored, image.dtype)


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


def restore_files(
    files: Sequence[Path],
    checkpoint: Checkpoint,
    out: Path,
    report: Report | None = None,
    settings: RestoreSettings | None = None,
) -> list[Failure]:
    """Corrects photographs into ``out`` under their own names and formats; returns what failed.

    ``files`` may be photographs, folders (the photographs directly in them) and patterns such as
    ``"night/*.jpg"``; each photograph is corrected once. EXIF orientation is applied; 16 bits,
    transparency, EXIF data and colour profile are kept. A file that fails does not stop the others,
    and leaves nothing behind. Raises QdmrError where there is no photograph at all, ``out`` cannot
    be made or written to, or the checkpoint is unusable.
    """
    report, settings = report or Report(), settings or RestoreSettings()
    if address := _ADDRESS.fullmatch(str(out)):
        raise SettingsError(
            f"--out {address[1]}://{address[2]}: photographs are restored into local folders only; "
            "name one, and copy it"
        )
    paths, failures = expand(files)
    if not paths:
        why = "; ".join(failure.reason for failure in failures) or "an empty list"
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise QdmrError(f"no photograph to restore ({why}); name {kinds} files or folders")
    device = usable_device(settings.device)
    model = _loaded(checkpoint)
    model.network.to(device)
    if not model.restores:
        raise QdmrError(
            f"{model.source}: is a VQGAN, which restores nothing; name a base, uda or source_only "
            "model"
        )
    for failure in failures:
        report.failed(failure)
    # The files that no result may replace, and why.
    taken = {_identity(path): f"overwrite {path}, which is to be restored, too" for path in paths}
    with _folder(out):
        for number, path in enumerate(paths, start=1):
            report.begun(path, number, len(paths))
            # A file whose ending is not that of an image becomes a PNG.
            is_known = path.suffix.lower() in IMAGE_SUFFIXES
            result = out / (path.name if is_known else f"{path.stem}.png")
            try:
                _check_free(result, path, taken)
                lost = _restore_file(path, result, model, settings, report)
            except Exception as error:  # Whatever one photograph breaks, the others are restored.
                failures.append(failure_of(path, error))
                report.failed(failures[-1])
            else:
                taken[_identity(result)] = f"replace that of {path}"
                report.restored(path, result, [f"{path}: {line}" for line in lost])
    return failures


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Makes the folder and tests it before hours of work; removes a new one that stays empty."""
    made, step = not out.exists(), "made"
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            step = "written to"
            with tempfile.NamedTemporaryFile(dir=out, prefix=TEMPORARY_PREFIX):
                pass
        except OSError as error:
            raise QdmrError(
                f"the folder {out} cannot be {step} ({error.strerror}): name another --out"
            ) from error
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()


def _restore_file(
    path: Path, result: Path, model: LoadedModel, settings: RestoreSettings, report: Report
) -> list[str]:
    photograph = read_photograph(path)
    check_fits(photograph, result.suffix.lower(), str(path))
    height, width = photograph.pixels.shape[:2]
    try:
        restored = restore(photograph.pixels, model, settings, report.advanced)
    except (RuntimeError, MemoryError) as error:
        # PyTorch has an exception type of its own only for a GPU's memory.
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise QdmrError(
            f"{path}: too little memory for {width}x{height} pixels; lower --memory, so that more "
            "lies in scratch files"
        ) from error
    return write_photograph(result, photograph, restored)


def _check_free(result: Path, path: Path, taken: Mapping[Identity, str]) -> None:
    """Keeps a result from overwriting another photograph's result, or a photograph itself, also on
    a disk that takes two names for one; and from a name that no disk takes."""
    if (length := len(os.fsencode(result.name))) > MOST_NAME_BYTES:
        raise QdmrError(
            f"{path}: the name of its result, {result.name}, has {length} bytes, and disks take "
            f"{MOST_NAME_BYTES}: give the photograph a shorter one"
        )
    if result.is_dir():
        raise QdmrError(f"{path}: its result would be {result}, a folder; name another --out")
    if (there := _identity(result)) is None:
        return
    if there == _identity(path):
        raise QdmrError(f"{path}: its result would overwrite it; name another --out")
    if there in taken:
        raise QdmrError(f"{path}: its result {result} would {taken[there]}; name another --out")


def _identity(path: Path) -> Identity:
    """Returns what tells a file from every other one, whatever their names; None without a file."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _loaded(checkpoint: Checkpoint) -> LoadedModel:
    return checkpoint if isinstance(checkpoint, LoadedModel) else load_model(checkpoint)
