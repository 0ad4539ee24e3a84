"""The pristine model that NIQE measures against, and its files.

    model = load_pristine("niqe_pris_params.npz")

The authors of NIQE publish theirs as ``modelparameters.mat``; many programs carry the same numbers
as ``niqe_pris_params.npz``. Neither is part of this package: name a file of yours, or fit one from
clean photographs with ``qdmr niqe-fit``.
"""

import errno
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.storage import write_file_atomic
from qdmr_ray.untrusted import check_archive, open_regular

# A block has 18 features at each of two scales.
FEATURES = 36
WINDOW_SIDE = 7
WINDOW_SIGMA = 7 / 6
# MATLAB's names come first; they lack the underscore before "param".
_MEAN_KEYS = ("mu_prisparam", "mu_pris_param")
_COVARIANCE_KEYS = ("cov_prisparam", "cov_pris_param")
_WINDOW_KEY = "gaussian_window"
# A model's numbers take 11 kB in float64. Of a .mat, which may be compressed by a factor of 1032,
# nobody knows the size before it is read.
_LARGEST = 1 << 19
_REMEDY = "name the authors' .mat or .npz, or make one with qdmr niqe-fit"


_OFFSETS = np.arange(WINDOW_SIDE) - (WINDOW_SIDE - 1) / 2
_LINE = np.exp(-(_OFFSETS**2) / (2 * WINDOW_SIGMA**2))
# The weights of local means and deviations; their sum is 1.
GAUSSIAN_WINDOW = np.outer(_LINE, _LINE) / np.outer(_LINE, _LINE).sum()


@dataclass(frozen=True, eq=False)
class PristineModel:
    """Mean ``(36,)`` and covariance ``(36, 36)`` of clean images' features, and ``window (7, 7)``.
    ``source`` names the origin of the numbers and is stored with them. Raises QdmrError for another
    shape, or a number that is not finite."""

    mean: np.ndarray
    covariance: np.ndarray
    window: np.ndarray
    source: str

    def __post_init__(self) -> None:
        shapes = {
            "mean": (FEATURES,),
            "covariance": (FEATURES, FEATURES),
            "window": (WINDOW_SIDE, WINDOW_SIDE),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise QdmrError(
                    f"{self.source}: the {name} of a pristine model has shape {shape} and finite "
                    f"numbers; this one has shape {array.shape}: {_REMEDY}"
                )


def load_pristine(path: Path | str) -> PristineModel:
    """Reads a model: MATLAB's ``.mat``, or else an ``.npz``; no code in it is ever run.

    The keys are ``mu_prisparam`` and ``cov_prisparam``, or ``mu_pris_param`` and
    ``cov_pris_param``. ``gaussian_window`` defaults to the 7 x 7 Gaussian of sigma 7/6, ``source``
    to the path. Raises QdmrError for a missing file, another kind of file, a missing key, or wrong
    shapes.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
                raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {_LARGEST:,}")
            check_archive(file, _LARGEST)
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise QdmrError(
            f"{path}: the pristine model cannot be read ({error.strerror}); {_REMEDY}"
        ) from error
    kind = ".mat" if path.suffix.lower() == ".mat" else ".npz"
    try:
        # scipy.io takes a while to import, and most models are .npz.
        if kind == ".mat":
            from scipy.io import loadmat

            arrays = loadmat(io.BytesIO(data))
        else:
            archive = np.load(io.BytesIO(data), allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("one array without names")
            arrays = dict(archive)
    except Exception as error:  # NumPy's and SciPy's readers raise many types for broken files.
        raise QdmrError(
            f"{path}: is no readable {kind} of a pristine model ({one_line(error)}); {_REMEDY}"
        ) from error
    mean = _numbers(path, arrays, _MEAN_KEYS)
    # MATLAB has no vectors: the mean comes as (1, 36) or (36, 1).
    mean = mean.reshape(-1) if mean.size == FEATURES else mean
    covariance = _numbers(path, arrays, _COVARIANCE_KEYS)
    given = _WINDOW_KEY in arrays
    window = _numbers(path, arrays, (_WINDOW_KEY,)) if given else GAUSSIAN_WINDOW
    # The path is the source at first, so that errors name it.
    model = PristineModel(mean, covariance, window, str(path))
    source = arrays.get("source")
    if source is None or source.size != 1:
        return model
    return replace(model, source=str(source.item()))


def save_pristine(path: Path | str, model: PristineModel) -> None:
    """Writes ``model`` atomically as an ``.npz`` that ``load_pristine`` and other programs read;
    raises QdmrError for another ending, a missing folder, or a place that is not writable."""
    path = check_target(path)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu_pris_param=model.mean.reshape(1, -1),
        cov_pris_param=model.covariance,
        gaussian_window=model.window,
        source=np.array(model.source),
    )
    write_file_atomic(path, buffer.getvalue())


def check_target(path: Path | str) -> Path:
    """Checks, before a fit of minutes, that its model can be saved at ``path``, and returns the
    path; raises QdmrError for another ending than ``.npz``, or a missing folder."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise QdmrError(f"{path}: a pristine model is an .npz; name a file that ends in .npz")
    if not path.absolute().parent.is_dir():
        raise QdmrError(f"{path}: there is no folder {path.parent}; make it or name another file")
    return path


def _numbers(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> np.ndarray:
    """Returns the float64 array under the first of ``keys`` that is there."""
    for key in keys:
        if key in arrays:
            try:
                return np.asarray(arrays[key], dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise QdmrError(f"{path}: {key} holds no real numbers; {_REMEDY}") from error
    held = ", ".join(key for key in arrays if not key.startswith("__")) or "nothing"
    raise QdmrError(f"{path}: holds no {' or '.join(keys)}, but {held}; {_REMEDY}")
