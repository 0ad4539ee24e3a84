"""Turns folders of clean photographs into the Realab layout, each imaged through a lens.

    qdmr data simulate photographs --lens manufactured --out data/realab

``optics.simulate`` images one photograph; this module reads and writes the files around it.
"""

from pathlib import Path

import numpy as np

from qdmr_ray.data.packing.folders import DatasetFolders, ImageFolder, Progress, check_folders
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.lens import Lens, load_lens
from qdmr_ray.optics.simulate import require_size, simulate_image
from qdmr_ray.photographs.decode import encode_png, read_image
from qdmr_ray.storage import open_location

# Folders of the Realab layout per domain: of the aberrated images, and of the clean images.
DOMAINS: dict[str, tuple[str, str | None]] = {
    "source": ("Syn/{lens}/train", "Syn/gt"),
    "target": ("Real-Sim/{lens}/train", None),
    "test": ("Real-Sim/{lens}/val", "Real-Sim/{lens}/val_gt"),
}


def simulate_folder(
    src: Path,
    lens: str,
    out: Path,
    *,
    domain: str = "source",
    lens_name: str | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
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

    Returns how many photographs were simulated. Raises QdmrError for no such folder, no images in
    it, two images that would get the same name, an unreadable or too small image, an unknown or
    malformed lens, or a full disk. Files already written are whole.
    """
    if domain not in DOMAINS:
        raise SettingsError(f"domain must be one of {', '.join(DOMAINS)}; it is {domain!r}")
    files = check_folders(DatasetFolders(target=ImageFolder(images=src)))["target"]
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(file.name, file.image)
        if other is not file.image:
            same = f"{other.name} would be written under the same name, {file.name}.png"
            raise QdmrError(f"{file.image}: {same}; rename one")
    loaded = load_lens(lens)
    for file in files:
        require_size(str(file.image), file.height, file.width, loaded)
    aberrated, clean = domain_folders(out, domain, lens_name or loaded.name)
    for done, file in enumerate(files):
        image = read_image(file.image)
        write_pair(image, loaded, aberrated, clean, name=f"{file.name}.png", seed=seed)
        progress(done + 1, len(files))
    return len(files)


def domain_folders(out: Path, domain: str, lens_name: str) -> tuple[Path, Path | None]:
    """Returns a domain's Realab folders: aberrated, and clean (``None`` when unpaired)."""
    aberrated, clean = DOMAINS[domain]
    place = out / aberrated.format(lens=lens_name)
    return place, None if clean is None else out / clean.format(lens=lens_name)


def write_pair(
    image: np.ndarray, lens: Lens, aberrated: Path, clean: Path | None, *, name: str, seed: int
) -> None:
    """Writes ``image`` through the lens to ``aberrated/name`` and, unless unpaired, as it is to
    ``clean/name``; makes the folders. Raises QdmrError when the image is too small for the lens or
    a file cannot be written."""
    result = simulate_image(image, lens, seed=seed, name=name)
    for folder, picture in ((aberrated, result), (clean, image)):
        if folder is not None:
            open_location(folder / name).write_bytes_atomic(encode_png(picture))
