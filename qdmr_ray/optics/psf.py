"""Point spread functions (PSFs) over a lens's field of view, and their file format (``.npz``).

grid = PSFGrid.load(Path("measured_psfs.npz"))
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import write_file_atomic
from qdmr_ray.untrusted import open_npz

NPZ_VERSION = 1
# A cell whose sum differs more from 1 was not normalised; less is rounding, and is corrected.
SUM_TOLERANCE = 0.01


@dataclass(frozen=True)
class PSFGrid:
    """PSFs over a frame: ``psf`` is float32 (rows, columns, 3, k, k), k odd.

    Row 0 belongs to the top edge of the frame, the last row to the bottom edge; columns run from
    left to right, channels are R, G, B. ``psf[r, c, ch, y, x]`` is the picture of a white point in
    channel ``ch``, y downwards and x to the right, with the point itself at the middle pixel.
    Values are at least 0, and each k × k cell sums to 1. Raises QdmrError for any other array.
    """

    psf: np.ndarray

    def __post_init__(self) -> None:
        psf = np.asarray(self.psf)
        if psf.ndim != 5 or psf.shape[2] != 3 or psf.shape[3] != psf.shape[4]:
            raise QdmrError(f"a PSF grid has the shape (rows, columns, 3, k, k), not {psf.shape}")
        if 0 in psf.shape or psf.shape[3] % 2 == 0:
            raise QdmrError(f"PSFs must have an odd width and height; the shape is {psf.shape}")
        if psf.dtype.kind not in "fiu" or not np.isfinite(psf).all():
            raise QdmrError("PSFs must be finite real numbers")
        if psf.min() < 0:
            raise QdmrError(f"PSFs must not be negative; the smallest value is {psf.min():.3g}")
        sums = psf.sum(axis=(3, 4), dtype=np.float64)
        worst = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
        if abs(sums[worst] - 1) > SUM_TOLERANCE:
            row, column, channel = (int(index) for index in worst)
            raise QdmrError(
                f"each PSF must sum to 1; row {row}, column {column}, channel {'RGB'[channel]} "
                f"sums to {sums[worst]:.4g}"
            )
        normalised = (psf / sums[..., None, None]).astype(np.float32)
        object.__setattr__(self, "psf", normalised)

    @property
    def support(self) -> int:
        """The width and height of a PSF in pixels."""
        return int(self.psf.shape[-1])

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` with the keys ``psf`` (float32, as in the class) and ``version``;
        raises QdmrError where the file can't be written, and leaves nothing half-written behind."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, psf=self.psf, version=np.int64(NPZ_VERSION))
        write_file_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file of ``save``, or a user's own with at least the key ``psf``; raises
        QdmrError, naming the file, where it is missing or malformed."""
        try:
            with open_npz(path) as archive:
                if "psf" not in archive:
                    found = ", ".join(archive) or "nothing"
                    raise QdmrError(f"a PSF grid holds an array named 'psf'; found {found}")
                version = int(archive["version"]) if "version" in archive else NPZ_VERSION
                if version != NPZ_VERSION:
                    raise QdmrError(
                        f"PSF grid version {version} is not known; this program reads {NPZ_VERSION}"
                    )
                return cls(archive["psf"])
        except FileNotFoundError as error:
            raise QdmrError(f"{path}: no such file") from error
        except QdmrError as error:
            raise QdmrError(f"{path}: {error}") from error
        except (OSError, ValueError) as error:
            raise QdmrError(f"{path}: not a readable .npz file of plain numbers") from error


def centroid(psf: np.ndarray) -> np.ndarray:
    """Returns the (2,) centre of light (x, y) of a (k, k) PSF, in pixels from its middle pixel."""
    offsets = np.arange(psf.shape[-1]) - psf.shape[-1] // 2
    total = psf.sum()
    return np.array([psf.sum(axis=0) @ offsets, psf.sum(axis=1) @ offsets]) / total
