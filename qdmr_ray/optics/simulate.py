"""Simulates the photograph that a bad lens would have taken from a clean photograph.

    aberrated = simulate_image(image, load_lens("manufactured"), seed=0, name="a.png")

The steps are: sRGB photograph → linear light → a PSF that changes over the field → veiling glare →
sensor noise → the camera's processing → 8-bit photograph. The clean photograph is the ground truth:
both stay aligned pixel by pixel, because the green PSFs are centred (``wavefront.py``).
"""

import hashlib

import numpy as np
from scipy.signal import fftconvolve

from qdmr_ray.errors import QdmrError
from qdmr_ray.optics.camera import add_glare, develop, expose, srgb_to_linear
from qdmr_ray.optics.lens import Lens
from qdmr_ray.optics.psf import PSFGrid


def simulate_image(image: np.ndarray, lens: Lens, *, seed: int, name: str) -> np.ndarray:
    """Returns a clean photograph as the lens and its camera would have taken it: uint8 (H, W, 3),
    aligned with ``image``, an sRGB photograph of the same type and shape. ``seed`` and ``name``
    determine the noise, so the order of images doesn't matter. Raises QdmrError, with the name,
    where the image is smaller than the lens's PSFs."""
    require_size(name, image.shape[0], image.shape[1], lens)
    light = blur(srgb_to_linear(image), lens.grid)
    raw = expose(add_glare(light, lens.camera.glare), lens.camera, _generator(seed, name))
    return develop(raw, lens.camera)


def blur(light: np.ndarray, grid: PSFGrid) -> np.ndarray:
    """Spreads every point of the picture by the PSF of its position in the field.

    A point between grid positions uses a bilinear mixture of their PSFs. With hat functions w_i
    that sum to 1 everywhere, this is Σ_i psf_i * (w_i · light): Nagy and O'Leary, "Restoring images
    degraded by spatially variant blur", SIAM J. Sci. Comput. 19 (1998) 1063. Beyond its edges the
    picture is continued by reflection. ``light`` and the result are float32 (H, W, 3), H and W at
    least the PSFs' support.
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
            blurred = fftconvolve(patch, grid.psf[row, column], axes=(1, 2))
            spread[:, top : bottom + 2 * reach, left : right + 2 * reach] += blurred
    inside = spread[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]
    return np.maximum(inside, 0).transpose(1, 2, 0)


def require_size(name: str, height: int, width: int, lens: Lens) -> None:
    """Raises QdmrError, naming the image, where it is smaller than the lens's PSFs."""
    if min(height, width) < lens.grid.support:
        raise QdmrError(
            f"{name}: the image is {width}x{height}, smaller than the PSFs of lens {lens.name}, "
            f"{lens.grid.support}x{lens.grid.support}; use larger images or a smaller support"
        )


def _hat_weights(length: int, positions: int, reach: int) -> list[tuple[int, np.ndarray]]:
    """Returns for each grid position the start and values of its hat function on the padded axis.
    The hats sum to 1 at every pixel; in the padding the outermost position has all the weight."""
    pixels = np.clip(np.arange(length + 2 * reach) - reach, 0, length - 1)
    place = pixels * ((positions - 1) / max(length - 1, 1))
    hats = []
    for position in range(positions):
        weight = np.maximum(1 - np.abs(place - position), 0)
        inside = np.flatnonzero(weight)
        hats.append((int(inside[0]), weight[inside[0] : inside[-1] + 1].astype(np.float32)))
    return hats


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
