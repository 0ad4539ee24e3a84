"""Clean photographs to photographs through a bad lens.

    qdmr data simulate photographs --lens manufactured --out data/realab

sRGB photograph → linear light → a PSF that changes over the field → veiling glare → sensor noise
→ the camera's processing → 8-bit photograph. The clean photograph is the ground truth: both stay
aligned pixel by pixel, because the green PSFs are centred (``psf.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.fft

from qdmr_ray.data.packing.folders import DatasetFolders, ImageFolder, check_folders
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.camera import add_glare, develop, expose, srgb_to_linear
from qdmr_ray.optics.lens import Lens, load_lens
from qdmr_ray.optics.psf import PSFGrid
from qdmr_ray.photographs.decode import encode_png, read_image
from qdmr_ray.storage import open_location

Progress = Callable[[int, int], None]

# Folders of the Realab layout per domain: where the aberrated image goes, and the clean one.
DOMAINS: dict[str, tuple[str, str | None]] = {
    "source": ("Syn/{lens}/train", "Syn/gt"),
    "target": ("Real-Sim/{lens}/train", None),
    "test": ("Real-Sim/{lens}/val", "Real-Sim/{lens}/val_gt"),
}


def simulate_image(image: np.ndarray, lens: Lens, *, seed: int, name: str) -> np.ndarray:
    """A clean photograph as the lens and its camera would have taken it.

    Args:
        image: uint8 (H, W, 3) sRGB, at least as large as the lens's PSFs.
        seed: with ``name`` it decides the noise, so the order of images does not matter.
        name: the image's name, in errors too.

    Returns:
        uint8 (H, W, 3), aligned with ``image``.

    Raises:
        QdmrError: the image is smaller than the PSFs.
    """
    _require_size(name, image.shape[0], image.shape[1], lens)
    light = blur(srgb_to_linear(image), lens.grid)
    raw = expose(add_glare(light, lens.camera.glare), lens.camera, _generator(seed, name))
    return develop(raw, lens.camera)


def blur(light: np.ndarray, grid: PSFGrid) -> np.ndarray:
    """Spreads every point of the picture by the PSF of its place in the field.

    A point between grid positions uses their PSFs mixed bilinearly. With hat functions w_i that
    sum to 1 everywhere, that is Σ_i psf_i * (w_i · light): Nagy and O'Leary, "Restoring images
    degraded by spatially variant blur", SIAM J. Sci. Comput. 19 (1998) 1063. Beyond its edges
    the picture goes on as its reflection.

    Args:
        light: float32 (H, W, 3), H and W at least the PSFs' support.

    Returns:
        float32 (H, W, 3).
    """
    height, width = light.shape[:2]
    rows, columns = grid.psf.shape[:2]
    reach = grid.support // 2
    planes = np.pad(light.transpose(2, 0, 1), ((0, 0), (reach, reach), (reach, reach)), "reflect")
    down = _hat_weights(height, rows, reach)
    across = _hat_weights(width, columns, reach)
    spread = np.zeros((3, height + 4 * reach, width + 4 * reach), np.float32)
    for row, (top, down_weight) in enumerate(down):
        for column, (left, across_weight) in enumerate(across):
            bottom, right = top + len(down_weight), left + len(across_weight)
            patch = planes[:, top:bottom, left:right] * np.outer(down_weight, across_weight)
            spread[:, top : bottom + 2 * reach, left : right + 2 * reach] += _convolve(
                patch, grid.psf[row, column]
            )
    inside = spread[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]
    return np.maximum(inside, 0).transpose(1, 2, 0)


def _hat_weights(length: int, positions: int, reach: int) -> list[tuple[int, np.ndarray]]:
    """Per grid position, where its hat function begins on the padded axis, and its values.

    The hats sum to 1 at every pixel; in the padding the outermost position has all the weight.
    """
    pixels = np.clip(np.arange(length + 2 * reach) - reach, 0, length - 1)
    place = pixels * ((positions - 1) / max(length - 1, 1))
    hats = []
    for position in range(positions):
        weight = np.maximum(1 - np.abs(place - position), 0)
        inside = np.flatnonzero(weight)
        hats.append((int(inside[0]), weight[inside[0] : inside[-1] + 1].astype(np.float32)))
    return hats


def _convolve(patch: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Full 2-D convolution of (3, h, w) with (3, k, k): (3, h + k − 1, w + k − 1)."""
    height, width = (patch.shape[axis] + kernel.shape[axis] - 1 for axis in (1, 2))
    shape = (scipy.fft.next_fast_len(height, True), scipy.fft.next_fast_len(width, True))
    spectrum = scipy.fft.rfft2(patch, shape) * scipy.fft.rfft2(kernel, shape)
    return scipy.fft.irfft2(spectrum, shape)[:, :height, :width]


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def simulate_folder(
    src: Path,
    lens: str,
    out: Path,
    *,
    domain: str = "source",
    lens_name: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> int:
    """Simulates every photograph of a folder into the Realab layout under ``out``.

    Args:
        src: folder of clean photographs.
        lens: as for ``load_lens``.
        domain: "source" writes pairs (``Syn/gt``, ``Syn/<lens>/train``), "target" unpaired images
            (``Real-Sim/<lens>/train``), "test" test pairs (``Real-Sim/<lens>/val``, ``val_gt``).
        lens_name: the lens's folder, by default the lens's own name; Realab has S1 and S2.
        seed: of the noise; the same seed gives the same files.
        progress: called with (images done, images in all).

    Returns:
        How many photographs were simulated.

    Raises:
        QdmrError: no such folder, no images in it, two images that would get the same name, an
            unreadable or too small image, an unknown or malformed lens, or a full disk.
            Files already written are whole.
    """
    if domain not in DOMAINS:
        raise SettingsError(f"domain must be one of {', '.join(DOMAINS)}; it is {domain!r}")
    files = check_folders(DatasetFolders(target=ImageFolder(images=src)))["target"]
    _refuse_same_names([file.image for file in files])
    loaded = load_lens(lens)
    for file in files:
        _require_size(str(file.image), file.height, file.width, loaded)
    aberrated, clean = domain_folders(out, domain, lens_name or loaded.name)
    for done, file in enumerate(files):
        image = read_image(file.image)
        write_pair(image, loaded, aberrated, clean, name=f"{file.name}.png", seed=seed)
        if progress is not None:
            progress(done + 1, len(files))
    return len(files)


def domain_folders(out: Path, domain: str, lens_name: str) -> tuple[Path, Path | None]:
    """A domain's folders in the Realab layout: aberrated, and clean (``None`` when unpaired)."""
    aberrated, clean = DOMAINS[domain]
    return (
        out / aberrated.format(lens=lens_name),
        None if clean is None else out / clean.format(lens=lens_name),
    )


def write_pair(
    image: np.ndarray, lens: Lens, aberrated: Path, clean: Path | None, *, name: str, seed: int
) -> None:
    """Writes ``image`` through the lens to ``aberrated/name`` and, unless unpaired, as it is to
    ``clean/name``; makes the folders.

    Raises QdmrError when the image is too small for the lens or a file cannot be written.
    """
    result = simulate_image(image, lens, seed=seed, name=name)
    for folder, picture in ((aberrated, result), (clean, image)):
        if folder is not None:
            open_location(folder / name).write_bytes_atomic(encode_png(picture))


def _require_size(name: str, height: int, width: int, lens: Lens) -> None:
    if min(height, width) < lens.grid.support:
        raise QdmrError(
            f"{name}: the image is {width}x{height}, smaller than the PSFs of lens {lens.name}, "
            f"{lens.grid.support}x{lens.grid.support}; use larger images or a smaller support"
        )


def _refuse_same_names(paths: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise QdmrError(
                f"{path}: {other.name} would be written under the same name, {path.stem}.png; "
                "rename one"
            )
