"""Gets the photographs of the method's benchmark, images them through two lenses, and packs them.

    python datasets/bench_photographs.py --out runs/bench/data
    python datasets/bench_photographs.py --out runs/bench/mine --photographs ~/holiday

``bench_photographs.yaml`` names the photographs, which come from Debian's packages (``apt-get`` and
``dpkg-deb``; nothing is installed) and from scikit-image and scikit-learn, with their authors,
licences and sets. With ``--photographs`` any folder takes their place, split by a seeded rule.

Below ``--out``: ``photographs`` holds the clean frames, ``realab`` what the two lenses make of
them, ``CREDITS.md`` the authors. Three packed datasets share their test photographs:

- ``packed``: source pairs through the lens as designed, other photographs through the singlet of
  ``singlet.yaml`` for the target and for the test. The validation photographs of the test set begin
  with ``validation_``.
- ``oracle``: the same but for the source, whose pairs are imaged through the singlet.
- ``source_lens``: the same but for the test, whose photographs are imaged through the lens as
  designed: what reality hides.

With ``--blends 25 50``, also ``blend-25`` and ``blend-50``: the same as ``packed`` but for the
source images, which are moved so many hundredths of the way to those of ``oracle``, pixel by pixel.
Trained on, they tell how near to the target lens s2t images have to come.

The same photographs give the same bytes, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from qdmr_ray.data.demo import CREDITS_FILE, Window, packaged_photograph
from qdmr_ray.data.packing.folders import is_photograph, list_images
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.simulation import domain_folders, simulate_folder
from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.optics.lens import load_lenses
from qdmr_ray.parsing import read_yaml
from qdmr_ray.photographs.decode import encode_png, read_image
from qdmr_ray.storage import open_location
from qdmr_ray.storage.document import FileName, Part

PHOTOGRAPHS_FILE = Path(__file__).with_name("bench_photographs.yaml")
SOURCE_LENS, TARGET_LENS = "prescription", str(Path(__file__).with_name("singlet.yaml"))
SOURCE, TARGET, VALIDATION, TEST = SETS = ("source", "target", "validation", "test")
# The names of the test set's validation photographs have this beginning.
VALIDATION_PREFIX = "validation_"
# The shares of a folder's photographs that become test, validation and target; the others are the
# source's.
SHARES = {TEST: 0.28, VALIDATION: 0.06, TARGET: 0.28}
FEWEST_PHOTOGRAPHS = 8
# The largest width of a frame in pixels: a crop of 64 to 256 holds detail.
WIDTH = 960
# Frames have the shape 3:2, for which the lenses are made, and a width that is a multiple of this,
# so that both sides are multiples of 16.
WIDTH_STEP, ASPECT = 48, 1.5
# The smallest frame holds the lenses' PSFs several times.
SMALLEST_WIDTH = 240


class BenchPhotograph(Part):
    """A photograph of the benchmark: its set, the file in its package, and where it comes from."""

    name: FileName
    set: str
    package: str
    file: str
    title: str
    author: str
    licence: str
    origin: str | None = None
    sha256: str

    @property
    def is_debian(self) -> bool:
        """Whether the photograph comes from one of Debian's packages."""
        return self.package not in ("skimage", "sklearn")


def bench_photographs() -> tuple[BenchPhotograph, ...]:
    """Returns the photographs of the benchmark, in the order of their file."""
    found = read_yaml(PHOTOGRAPHS_FILE)["photographs"]
    return TypeAdapter(tuple[BenchPhotograph, ...]).validate_python(found)


def find_photographs(out: Path) -> dict[str, dict[str, Path]]:
    """Returns the files of the benchmark's photographs by set and name; what Debian ships is
    downloaded below ``out``, unless it is there. Says in a line where a file has other content than
    the benchmark's. Raises QdmrError where a package can't be had, or lacks a photograph."""
    files: dict[str, dict[str, Path]] = {name: {} for name in SETS}
    missing: dict[str, dict[str, Path]] = defaultdict(dict)
    photographs = bench_photographs()
    for photo in photographs:
        if photo.is_debian:
            path = out / "debian" / photo.package / Path(photo.file).relative_to("usr/share")
            if not path.is_file():
                missing[photo.package][photo.file] = path
        else:
            path = packaged_photograph(photo.package, photo.file)
        files[photo.set][photo.name] = path
    versions = read_yaml(PHOTOGRAPHS_FILE)["packages"]
    for package, wanted in missing.items():
        print(f"get {len(wanted)} photographs of Debian's package {package}", flush=True)
        _download(package, wanted, versions[package])
    for photo in photographs:
        path = files[photo.set][photo.name]
        if hashlib.sha256(path.read_bytes()).hexdigest() != photo.sha256:
            print(
                f"{path}: is another file than the benchmark's (of {photo.package} "
                f"{versions.get(photo.package, 'in constraints.txt')}): results may differ a little"
            )
    return files


def _download(package: str, wanted: dict[str, Path], version: str) -> None:
    """Takes files out of a Debian package. ``wanted`` has the path on disk of each file."""
    with tempfile.TemporaryDirectory(prefix="qdmr-debian-") as folder:
        _command(["apt-get", "download", "--quiet", package], folder)
        (archive,) = Path(folder).glob("*.deb")
        content = Path(folder) / "content.tar"
        content.write_bytes(_command(["dpkg-deb", "--fsys-tarfile", archive.name], folder))
        left = dict(wanted)
        with tarfile.open(content) as tar:
            for member in tar:
                path = left.pop(member.name.removeprefix("./"), None)
                file = tar.extractfile(member) if path is not None and member.isfile() else None
                if path is not None and file is not None:
                    open_location(path).write_bytes_atomic(file.read())
    if left:
        raise QdmrError(
            f"{archive.name}: has no {', '.join(left)}; Debian's package {package} {version} has "
            "it, or name a folder of photographs with --photographs"
        )


def _command(command: list[str], folder: str) -> bytes:
    """Returns what a program of Debian's prints; raises QdmrError where it fails or isn't there."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
    except FileNotFoundError:
        why = f"{command[0]} is not there"
    except subprocess.CalledProcessError as error:
        # The last line is the error, after apt's warnings.
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        why = f"{' '.join(command)}: {lines[-1]}"
    else:
        return done.stdout
    raise QdmrError(
        f"{why}; take a Debian 12 (as root: apt-get update), or name a folder of photographs with "
        "--photographs"
    )


def split_folder(folder: Path, seed: int) -> dict[str, dict[str, Path]]:
    """Splits the photographs of any folder by a hash of seed and name; returns their files by set
    and name. Raises QdmrError where they are too few, or two have one name."""
    paths: dict[str, Path] = {}
    for path in map(Path, map(str, list_images(folder))):
        if path.stem in paths:
            raise QdmrError(f"{path}: has the same name as {paths[path.stem].name}; rename one")
        paths[path.stem] = path
    if len(paths) < FEWEST_PHOTOGRAPHS:
        raise QdmrError(
            f"{folder}: holds {len(paths)} photographs; a benchmark takes {FEWEST_PHOTOGRAPHS} "
            "or more"
        )
    ordered = sorted(paths, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    files: dict[str, dict[str, Path]] = {name: {} for name in SETS}
    for part, share in SHARES.items():
        for _ in range(max(1, round(share * len(paths)))):
            name = ordered.pop()
            files[part][name] = paths[name]
    files[SOURCE] = {name: paths[name] for name in ordered}
    return files


def cut_frame(path: Path, width: int) -> np.ndarray:
    """Cuts the largest window of shape 3:2 out of the middle of a photograph and brings it, by a
    Lanczos filter, to at most ``width`` pixels, never enlarged: uint8 (H, W, 3). Raises QdmrError
    where the photograph is unreadable or too small."""
    image = read_image(path)
    height, full = image.shape[:2]
    columns = int(min(full, height * ASPECT, width)) // WIDTH_STEP * WIDTH_STEP
    if columns < min(SMALLEST_WIDTH, width):
        raise QdmrError(f"{path}: is {full}x{height} pixels, too small for a frame; leave it out")
    frame = (round(columns / ASPECT), columns)
    box = Window().box(height, full, frame)
    lanczos = Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((columns, frame[0]), lanczos, box))


def write_frames(files: dict[str, dict[str, Path]], out: Path, width: int) -> None:
    """Writes the clean frames of all sets below ``out``; a frame that is there stays. Raises
    QdmrError where a folder holds other images, which would join a set, and might be in two."""
    frames = {SOURCE: files[SOURCE], TARGET: files[TARGET], TEST: dict(files[TEST])}
    for name, path in files[VALIDATION].items():
        frames[TEST][f"{VALIDATION_PREFIX}{name}"] = path
    for part, named in frames.items():
        folder = out / part
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if is_photograph(path) and path.stem not in named:
                raise QdmrError(f"{path}: not of this benchmark; choose an empty folder for --out")
        for name, path in named.items():
            file, frame = folder / f"{name}.png", encode_png(cut_frame(path, width))
            # A new file would be simulated again.
            if not file.is_file() or file.read_bytes() != frame:
                open_location(file).write_bytes_atomic(frame)


def blend(own: Path, other: Path, out: Path, percent: int) -> None:
    """Writes the images of ``own``, moved by ``percent`` of the way to those of the same names in
    ``other``."""
    for path in list_images(own):
        first, second = (
            read_image(folder / path.name).astype(np.float64) for folder in (own, other)
        )
        mixed = np.rint(first + percent / 100 * (second - first)).astype(np.uint8)
        open_location(out / path.name).write_bytes_atomic(encode_png(mixed))


def simulate_and_pack(
    out: Path, seed: int, source_lens: str, target_lens: str, blends: Sequence[int]
) -> None:
    """Images the frames below ``out`` through the lenses, names or files as ``load_lenses`` takes
    them, and packs the datasets."""
    realab, both = out / "realab", (source_lens, target_lens)
    own, other = (lens.name for lens in load_lenses(both))
    for domain, lenses in ((SOURCE, both), (TARGET, (target_lens,)), (TEST, both)):
        print(f"simulate {domain} through {' and '.join(lenses)}", flush=True)
        simulate_folder(out / "photographs" / domain, lenses, realab, domain=domain, seed=seed)
    for percent in blends:
        places = (
            realab / domain_folders(Path(), SOURCE, name)[0]
            for name in (own, other, f"blend-{percent}")
        )
        blend(*places, percent)
    for name, source, test in (
        ("packed", own, other),
        ("oracle", other, other),
        ("source_lens", own, own),
        *((f"blend-{percent}", f"blend-{percent}", other) for percent in blends),
    ):
        # Relative to the packed folder, so that the datasets' bytes don't say where it lies.
        pairs, clean = domain_folders(Path(), SOURCE, source)
        target, _ = domain_folders(Path(), TARGET, other)
        tests, truth = domain_folders(Path(), TEST, test)
        settings = PackSettings(
            source_images=str(pairs),
            source_ground_truth=str(clean),
            target_images=str(target),
            test_images=str(tests),
            test_ground_truth=str(truth),
        )
        manifest = pack(realab, str(out / name), settings=settings)
        sizes = ", ".join(f"{found.images} {part}" for part, found in manifest.sets.items())
        print(f"pack {out / name}: {sizes}", flush=True)


def credits(photographs: Iterable[BenchPhotograph]) -> str:
    """Lists set, title, author, licence and origin of every photograph, as Markdown."""
    about = (
        "Scaled, cut, and in `realab` outside `gt` and `val_gt` aberrated by qdmr_ray. What is "
        "under a share-alike licence stays under it."
    )
    rows = [("name", "set", "title", "author", "licence", "origin"), ("---",) * 6]
    for photo in photographs:
        place = f"`{photo.file}` of {photo.package}"
        origin = f"{photo.origin}; {place}" if photo.origin else place
        rows.append((photo.name, photo.set, photo.title, photo.author, photo.licence, origin))
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return f"# Photographs\n\n{about}\n\n{table}"


def build(
    out: Path,
    *,
    photographs: Path | None = None,
    seed: int = 0,
    width: int = WIDTH,
    source_lens: str = SOURCE_LENS,
    target_lens: str = TARGET_LENS,
    blends: Sequence[int] = (),
) -> None:
    """Makes all of the benchmark's data below ``out``, which is new, empty or an earlier result;
    the arguments are those of the command line."""
    if photographs is None:
        files = find_photographs(out)
        open_location(out / CREDITS_FILE).write_bytes_atomic(credits(bench_photographs()).encode())
    else:
        files = split_folder(photographs, seed)
    counts = ", ".join(f"{len(named)} {part}" for part, named in files.items())
    print(f"photographs: {counts}", flush=True)
    write_frames(files, out / "photographs", width)
    simulate_and_pack(out, seed, source_lens, target_lens, blends)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/data"), metavar="FOLDER")
    parser.add_argument(
        "--photographs", type=Path, metavar="DIR", help="any folder, split by --seed"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and the sensors' noise")
    parser.add_argument("--width", type=int, default=WIDTH, help="largest of a frame, in pixels")
    for name, lens in (("--source-lens", SOURCE_LENS), ("--target-lens", TARGET_LENS)):
        shown = f"name or file; {Path(lens).name}"
        parser.add_argument(name, default=lens, metavar="LENS", help=shown)
    parser.add_argument(
        "--blends",
        type=int,
        nargs="+",
        default=(),
        choices=range(1, 100),
        metavar="PERCENT",
        help="also datasets between both lenses",
    )
    found = parser.parse_args(arguments)
    if found.width < WIDTH_STEP:
        parser.error(f"--width {found.width}: must be at least {WIDTH_STEP}")
    try:
        build(**vars(found))
    except (QdmrError, OSError) as error:
        print(f"bench_photographs: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
