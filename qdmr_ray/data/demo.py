"""Makes the demo's data from real photographs that come inside scikit-image and scikit-learn.

    build_demo_data(Path("runs/demo/data/realab"))

Nothing is downloaded. The split is by photograph: no photograph of the test set is in a training
set, and the target's photographs are not the source's, so that the domains are unpaired.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from qdmr_ray.data.packing.folders import Progress, is_photograph
from qdmr_ray.data.simulation import DOMAINS, domain_folders, write_pair
from qdmr_ray.errors import QdmrError
from qdmr_ray.optics.lens import load_lens
from qdmr_ray.parsing import read_yaml
from qdmr_ray.photographs.decode import probe_image, read_image
from qdmr_ray.storage import open_location
from qdmr_ray.storage.document import Part

# Realab's name of its first lens: the demo has one lens, as designed and as manufactured.
LENS_NAME = "S1"
LENSES = {"source": "prescription", "target": "manufactured", "test": "manufactured"}
CREDITS_FILE = "CREDITS.md"
# Beyond this factor a frame would be a blown-up photograph, soft before it meets the lens.
MAXIMUM_ENLARGEMENT = 1.1

_PHOTOGRAPHS_FILE = Path(__file__).with_name("demo_photographs.yaml")
_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


class Window(NamedTuple):
    """A part of a photograph that becomes a frame. ``zoom`` 1 is the largest window of the frame's
    shape, 2 one of half its width; ``x`` and ``y`` place it, 0 at the left or top edge,
    1 at the right or bottom edge."""

    zoom: float = 1.0
    x: float = 0.5
    y: float = 0.5

    def box(
        self, height: int, width: int, frame: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """Returns (left, top, right, bottom) in pixels of a photograph of this height and width."""
        scale = min(height / frame[0], width / frame[1]) / self.zoom
        # Rounding may not lead outside the photograph.
        window_height, window_width = min(height, frame[0] * scale), min(width, frame[1] * scale)
        left, top = (width - window_width) * self.x, (height - window_height) * self.y
        return left, top, left + window_width, top + window_height


class Photograph(Part):
    """One photograph of an installed package, the domain it serves, and where it comes from."""

    file: str
    package: str
    domain: str
    windows: tuple[Window, ...]
    title: str
    author: str
    licence: str
    origin: str

    @property
    def frame_names(self) -> list[str]:
        """The file names of the photograph's frames, one for each window."""
        return [f"{Path(self.file).stem}_{number}.png" for number in range(len(self.windows))]


@cache
def demo_photographs() -> tuple[Photograph, ...]:
    """Returns the demo's photographs, in the order in which they are simulated."""
    found = read_yaml(_PHOTOGRAPHS_FILE)["photographs"]
    return TypeAdapter(tuple[Photograph, ...]).validate_python(found)


def packaged_photograph(package: str, file: str) -> Path:
    """Finds a photograph in the installed package ``skimage`` or ``sklearn``, which is not
    imported; raises QdmrError when the package or the file is not installed."""
    distribution = _DISTRIBUTIONS[package]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        missing = f"comes with {distribution}, which is not installed"
        remedy = f"run: pip install {distribution}"
        raise QdmrError(f"the photograph {file} {missing}; {remedy}")
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / _FOLDERS[package] / file
    if path.is_file():
        return path
    remedy = "install the version in constraints.txt"
    raise QdmrError(f"{path}: this {distribution} comes without the photograph; {remedy}")


def cut_frames(photograph: Photograph, frame: tuple[int, int]) -> list[np.ndarray]:
    """Cuts the photograph's frames, each uint8 (*frame, 3), scaled by a Lanczos filter; raises
    QdmrError when the photograph is too small for the frame."""
    image = read_image(packaged_photograph(photograph.package, photograph.file))
    height, width = image.shape[:2]
    _require_size(photograph, height, width, frame)
    size, lanczos = (frame[1], frame[0]), Image.Resampling.LANCZOS
    return [
        np.asarray(Image.fromarray(image).resize(size, lanczos, window.box(height, width, frame)))
        for window in photograph.windows
    ]


def build_demo_data(
    out: Path,
    *,
    frame: tuple[int, int] = (320, 480),
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Writes the demo's three sets in the Realab layout, the same bytes every time; returns
    ``out``, which is new, empty, or written by this function before.

    ``Syn/gt`` and ``Syn/S1/train`` are pairs through the lens as designed, ``Real-Sim/S1/train``
    other photographs through the lens as manufactured, and ``Real-Sim/S1/val`` with ``val_gt`` the
    test pairs through the manufactured lens. ``CREDITS.md`` names the photographs' authors.

    ``frame`` is (height, width) in pixels of all images, ``seed`` that of the cameras' noise;
    ``progress`` is called with (frames done, frames in all). Raises QdmrError where a package or
    photograph is missing, the frame is too large or too small, or ``out`` holds other images or
    cannot be written.
    """
    _refuse_foreign_images(out)
    photographs = demo_photographs()
    for photograph in photographs:
        path = packaged_photograph(photograph.package, photograph.file)
        _require_size(photograph, *probe_image(path), frame)
    lenses = {domain: load_lens(name) for domain, name in LENSES.items()}
    total = sum(len(photograph.windows) for photograph in photographs)
    done = 0
    for photograph in photographs:
        aberrated, clean = domain_folders(out, photograph.domain, LENS_NAME)
        frames = cut_frames(photograph, frame)
        for name, image in zip(photograph.frame_names, frames, strict=True):
            lens = lenses[photograph.domain]
            write_pair(image, lens, aberrated, clean, name=name, seed=seed)
            done += 1
            progress(done, total)
    open_location(out / CREDITS_FILE).write_bytes_atomic(credits().encode())
    return out


def credits() -> str:
    """Lists title, author, licence and origin of every photograph, as Markdown."""
    about = "Scaled, cut, and in the folders other than `gt` and `val_gt` aberrated by qdmr_ray."
    rows = [("file", "set", "title", "author", "licence", "origin"), ("---",) * 6]
    for photo in demo_photographs():
        origin = f"{photo.origin}; from {_DISTRIBUTIONS[photo.package]}"
        cells = (photo.file, photo.domain, photo.title, photo.author, photo.licence, origin)
        rows.append(cells)
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return f"# Photographs\n\n{about}\n\n{table}"


def _require_size(photograph: Photograph, height: int, width: int, frame: tuple[int, int]) -> None:
    for window in photograph.windows:
        left, _, right, _ = window.box(height, width, frame)
        enlargement = frame[1] / (right - left)
        if enlargement > MAXIMUM_ENLARGEMENT:
            raise QdmrError(
                f"frame {frame[0]}x{frame[1]} is too large for the demo's photographs: "
                f"{photograph.file} would be enlarged {enlargement:.2f} times; use a smaller frame"
            )


def _refuse_foreign_images(out: Path) -> None:
    """Refuses images of other origin, which would join a set, and might be in two."""
    for domain in DOMAINS:
        own = {name for p in demo_photographs() if p.domain == domain for name in p.frame_names}
        for folder in domain_folders(out, domain, LENS_NAME):
            present = folder.iterdir() if folder is not None and folder.is_dir() else ()
            for path in sorted(present):
                if is_photograph(path) and path.name not in own:
                    raise QdmrError(f"{path}: not of the demo's data; choose an empty folder")
