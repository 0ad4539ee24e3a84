"""Lenses: shipped ones by name, your own as YAML (aberrations) or ``.npz`` (measured PSFs).

    lens = load_lens("manufactured")
    lens = load_lens("my_lens.yaml")
    lens = load_lens("measured_psfs.npz")

A lens includes its camera: the PSFs over the frame, and the work of sensor and ISP.
``datasets/README.md`` describes both file formats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.camera import CameraSettings
from qdmr_ray.optics.psf import PSFGrid
from qdmr_ray.optics.wavefront import OpticsSettings, psf_grid
from qdmr_ray.parsing import parse_settings, read_yaml
from qdmr_ray.settings import Settings, setting

_YAML = (".yaml", ".yml")
LENS_FOLDER = Path(__file__).parent / "lenses"


@dataclass(frozen=True, kw_only=True)
class LensSettings(Settings):
    """A lens file: either ``optics`` or ``psf_grid``, and the camera behind it."""

    optics: OpticsSettings | None = setting(None, "wavefront aberrations")
    psf_grid: str | None = setting(
        None, "measured PSFs instead: an .npz file, relative to this file's folder"
    )
    camera: CameraSettings = setting(CameraSettings, "glare, sensor and image processing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.optics is None) == (self.psf_grid is None):
            raise SettingsError("a lens has either optics or psf_grid, not both and not neither")


@dataclass(frozen=True)
class Lens:
    """The simulator's input: a name for folders and messages, PSFs, and the camera."""

    name: str
    grid: PSFGrid
    camera: CameraSettings


def shipped_lenses() -> list[str]:
    """Returns the names of the lenses that come with the package, sorted."""
    return sorted(path.stem for path in LENS_FOLDER.glob("*.yaml"))


def load_lenses(lenses: Sequence[str]) -> list[Lens]:
    """Returns the lenses that names, files and folders of lens files mean, in this order. In a
    folder, every ``.yaml`` and ``.npz`` is a lens, but not PSFs that a ``.yaml`` there refers to.
    Raises QdmrError as ``load_lens``, for a folder without a lens, and for two lenses of one name,
    since the name is that of the pictures' folder."""
    files = [file for lens in lenses for file in _files_of(lens)]
    loaded = [load_lens(file) for file in files]
    named: dict[str, str] = {}
    for file, lens in zip(files, loaded, strict=True):
        if lens.name in named:
            raise QdmrError(f"{file}: has the same name as {named[lens.name]}; rename one")
        named[lens.name] = file
    return loaded


def _files_of(lens: str) -> list[str]:
    folder = Path(lens)
    if lens in shipped_lenses() or not folder.is_dir():
        return [lens]
    files = sorted(path for path in folder.iterdir() if path.suffix in (*_YAML, ".npz"))
    settings = [_settings(path) for path in files if path.suffix in _YAML]
    parts = [folder / found.psf_grid for found in settings if found.psf_grid is not None]
    whole = [str(path) for path in files if path not in parts]
    if not whole:
        raise QdmrError(f"{folder}: holds no lens (.yaml or .npz)")
    return whole


def _settings(path: Path) -> LensSettings:
    return parse_settings(TypeAdapter(LensSettings), read_yaml(path), str(path))


def load_lens(lens: str) -> Lens:
    """Returns a shipped lens by its name, or a lens from a ``.yaml`` or ``.npz`` file; raises
    QdmrError for an unknown name, and for a file that is missing, unreadable or malformed, which
    includes settings that are unknown, of the wrong type or out of range."""
    path = Path(lens)
    if path.suffix == ".npz":
        return Lens(path.stem, PSFGrid.load(path), CameraSettings())
    if path.suffix not in _YAML:
        path = LENS_FOLDER / f"{lens}.yaml"
        if lens not in shipped_lenses():
            raise QdmrError(
                f"lens {lens!r} is not known; use {' or '.join(shipped_lenses())}, "
                "or the path of a .yaml or .npz file"
            )
    settings = _settings(path)
    if settings.optics is None:
        grid = PSFGrid.load(path.parent / str(settings.psf_grid))
    else:
        try:
            grid = psf_grid(settings.optics)
        except QdmrError as error:
            raise QdmrError(f"{path}: {error}") from error
    return Lens(path.stem, grid, settings.camera)
