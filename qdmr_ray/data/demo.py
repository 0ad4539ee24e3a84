"""The demo's data: real photographs that come inside scikit-image and scikit-learn.

    build_demo_data(Path("runs/demo/data/realab"))

Nothing is downloaded. The split is by photograph: what is in the test set is in no training set,
and the target's photographs are not the source's, so that the domains are unpaired.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qdmr_ray.data.packing.folders import Progress
from qdmr_ray.data.simulation import domain_folders, write_pair
from qdmr_ray.errors import QdmrError
from qdmr_ray.optics.lens import load_lens
from qdmr_ray.photographs.decode import IMAGE_SUFFIXES, probe_image, read_image
from qdmr_ray.storage import open_location

# What Realab calls its first lens: the demo has one lens, as designed and as manufactured.
LENS_NAME = "S1"
LENSES = {"source": "prescription", "target": "manufactured", "test": "manufactured"}
CREDITS_FILE = "CREDITS.md"
# Beyond this a frame would be a blown-up photograph, soft before it meets the lens.
MAXIMUM_ENLARGEMENT = 1.1

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
_CC_BY = "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/"


@dataclass(frozen=True)
class Window:
    """A part of a photograph that becomes a frame.

    ``zoom`` 1 is the largest window of the frame's shape, 2 one of half its width; ``x`` and ``y``
    place it: 0 at the left or top edge, 1 at the right or bottom edge.
    """

    zoom: float = 1.0
    x: float = 0.5
    y: float = 0.5

    def box(
        self, height: int, width: int, frame: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of a photograph of this height and width."""
        scale = min(height / frame[0], width / frame[1]) / self.zoom
        window_height, window_width = frame[0] * scale, frame[1] * scale
        left, top = (width - window_width) * self.x, (height - window_height) * self.y
        return left, top, left + window_width, top + window_height


@dataclass(frozen=True, kw_only=True)
class Photograph:
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
    def name(self) -> str:
        """The file's name without its ending; frames are called ``<name>_<number>.png``."""
        return Path(self.file).stem


_WHOLE = Window()
_QUARTERS = tuple(Window(1.5, x, y) for y in (0, 1) for x in (0, 1))
_MOTORCYCLE = {
    "author": "N. Nesic, P. Westling, X. Wang, Y. Kitajima, G. Krathwohl, D. Scharstein",
    "licence": "no licence named; cite Scharstein et al., GCPR 2014",
    "origin": "Middlebury 2014 stereo benchmark, http://vision.middlebury.edu/stereo/data/scenes2014/",
}

PHOTOGRAPHS = (
    # The two motorcycle pictures show one scene, so they belong on one side of the split.
    Photograph(
        file="motorcycle_left.png",
        package="skimage",
        domain="source",
        windows=(_WHOLE, *_QUARTERS),
        title="Motorcycle, left of a stereo pair",
        **_MOTORCYCLE,
    ),
    Photograph(
        file="motorcycle_right.png",
        package="skimage",
        domain="source",
        windows=(_WHOLE, *_QUARTERS),
        title="Motorcycle, right of a stereo pair",
        **_MOTORCYCLE,
    ),
    Photograph(
        file="rocket.jpg",
        package="skimage",
        domain="source",
        windows=(_WHOLE, Window(1.3, 0, 1), Window(1.3, 1, 1)),
        title="Falcon 9 carrying DSCOVR",
        author="SpaceX",
        licence="public domain",
        origin="https://www.flickr.com/photos/spacexphotos/16511594820/",
    ),
    Photograph(
        file="ihc.png",
        package="skimage",
        domain="source",
        windows=(Window(1, 0.5, 0), Window(1, 0.5, 1)),
        title="Colonic glands, immunohistochemical staining",
        author="Center for Microscopy and Molecular Imaging (CMMI)",
        licence="no known copyright restrictions",
        origin="CMMI",
    ),
    Photograph(
        file="china.jpg",
        package="sklearn",
        domain="target",
        windows=(_WHOLE, *(Window(1.3, x, y) for y in (0, 1) for x in (0, 1))),
        title="Tower above a lake, China",
        author="danielbuechele",
        licence=_CC_BY,
        origin="https://www.flickr.com/photos/danielbuechele/6061409035/",
    ),
    Photograph(
        file="coffee.png",
        package="skimage",
        domain="target",
        windows=(_WHOLE, Window(1.25, 0, 1), Window(1.25, 1, 0)),
        title="Coffee cup, courtesy of Pikolo Espresso Bar",
        author="Rachel Michetti",
        licence="CC0",
        origin="scikit-image",
    ),
    Photograph(
        file="hubble_deep_field.jpg",
        package="skimage",
        domain="target",
        windows=(Window(2, 0, 0), Window(2, 1, 1)),
        title="Hubble eXtreme Deep Field",
        author="NASA",
        licence="public domain (NASA guidelines)",
        origin="http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    ),
    Photograph(
        file="retina.jpg",
        package="skimage",
        domain="target",
        windows=(Window(2, 0, 0.5), Window(2, 1, 0.5)),
        title="Fundus photograph of a normal left eye",
        author="Mikael Häggström",
        licence="CC0 1.0",
        origin="https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
    ),
    Photograph(
        file="astronaut.png",
        package="skimage",
        domain="test",
        windows=(Window(1, 0.5, 0), Window(1, 0.5, 0.5), Window(1, 0.5, 1)),
        title="Eileen Collins, astronaut",
        author="NASA",
        licence="public domain",
        origin="https://flic.kr/p/r9qvLn",
    ),
    Photograph(
        file="chelsea.png",
        package="skimage",
        domain="test",
        windows=(_WHOLE,),
        title="Chelsea the cat",
        author="Stefan van der Walt",
        licence="CC0",
        origin="scikit-image",
    ),
    Photograph(
        file="flower.jpg",
        package="sklearn",
        domain="test",
        windows=(_WHOLE, Window(1.3, 0.35, 0.2)),
        title="Dahlia",
        author="danielbuechele, as scikit-learn names him; the address is of the user vultilion",
        licence=_CC_BY,
        origin="https://www.flickr.com/photos/vultilion/6056698931/",
    ),
)


def photograph_path(photograph: Photograph) -> Path:
    """Where the photograph lies in the installed package; the package is not imported.

    Raises QdmrError when the package or the file is not installed.
    """
    distribution = _DISTRIBUTIONS[photograph.package]
    spec = importlib.util.find_spec(photograph.package)
    if spec is None or not spec.submodule_search_locations:
        raise QdmrError(
            f"the demo's photograph {photograph.file} comes with {distribution}, which is not "
            f"installed; run: pip install {distribution}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / _FOLDERS[photograph.package] / photograph.file
    if not path.is_file():
        raise QdmrError(
            f"{path}: this {distribution} comes without the demo's photograph; "
            f"install the version in constraints.txt"
        )
    return path


def cut_frames(photograph: Photograph, frame: tuple[int, int]) -> list[np.ndarray]:
    """The photograph's frames, each uint8 (*frame, 3), scaled by a Lanczos filter.

    Raises QdmrError when the photograph is too small for the frame.
    """
    image = read_image(photograph_path(photograph))
    height, width = image.shape[:2]
    _require_size(photograph, height, width, frame)
    return [
        np.asarray(
            Image.fromarray(image).resize(
                (frame[1], frame[0]), Image.Resampling.LANCZOS, box=window.box(height, width, frame)
            )
        )
        for window in photograph.windows
    ]


def build_demo_data(
    out: Path,
    *,
    frame: tuple[int, int] = (320, 480),
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes the demo's three sets in the Realab layout, the same bytes every time.

    ``Syn/gt`` and ``Syn/S1/train`` are pairs through the lens as designed, ``Real-Sim/S1/train``
    other photographs through the lens as manufactured, and ``Real-Sim/S1/val`` with ``val_gt``
    the test pairs through the manufactured lens. ``CREDITS.md`` names the photographs' authors.

    Args:
        out: the Realab folder; new, empty, or written by this function before.
        frame: (height, width) in pixels of all images.
        seed: of the cameras' noise.
        progress: called with (frames done, frames in all).

    Returns:
        ``out``.

    Raises:
        QdmrError: a package or photograph is missing, the frame is too large or too small, or
            ``out`` holds other images or cannot be written.
    """
    _refuse_foreign_images(out)
    for photograph in PHOTOGRAPHS:
        _require_size(photograph, *probe_image(photograph_path(photograph)), frame)
    lenses = {name: load_lens(name) for name in sorted(set(LENSES.values()))}
    total = sum(len(photograph.windows) for photograph in PHOTOGRAPHS)
    done = 0
    for photograph in PHOTOGRAPHS:
        aberrated, clean = domain_folders(out, photograph.domain, LENS_NAME)
        lens = lenses[LENSES[photograph.domain]]
        for name, image in zip(frame_names(photograph), cut_frames(photograph, frame), strict=True):
            write_pair(image, lens, aberrated, clean, name=name, seed=seed)
            done += 1
            if progress is not None:
                progress(done, total)
    open_location(out / CREDITS_FILE).write_bytes_atomic(credits().encode())
    return out


def frame_names(photograph: Photograph) -> list[str]:
    """File names of the photograph's frames."""
    return [f"{photograph.name}_{number}.png" for number in range(len(photograph.windows))]


def credits() -> str:
    """Title, author, licence and origin of every photograph, as Markdown."""
    lines = [
        "# Photographs",
        "",
        "Scaled, cut, and in the folders other than `gt` and `val_gt` aberrated by qdmr_ray.",
        "",
        "| file | set | title | author | licence | origin |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for photo in PHOTOGRAPHS:
        origin = f"{photo.origin}; from {_DISTRIBUTIONS[photo.package]}"
        cells = (photo.file, photo.domain, photo.title, photo.author, photo.licence, origin)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
    """A frame left from elsewhere would join a set, and might be in two."""
    for domain in LENSES:
        own = {name for p in PHOTOGRAPHS if p.domain == domain for name in frame_names(p)}
        for folder in domain_folders(out, domain, LENS_NAME):
            if folder is None or not folder.is_dir():
                continue
            foreign = sorted({path.name for path in _images(folder)} - own)
            if foreign:
                raise QdmrError(
                    f"{folder / foreign[0]}: not of the demo's data; choose an empty folder"
                )


def _images(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
