"""Folders of photographs through a lens: the Realab layout, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faulty_store import FaultyStore
from PIL import Image

from qdmr_ray.data.packing.resume import claimed
from qdmr_ray.data.simulation import simulate_folder
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.lens import load_lens
from qdmr_ray.optics.psf import PSFGrid
from qdmr_ray.optics.simulate import simulate_image
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import any_path, location_of, open_location


def texture(seed: int = 0, height: int = 96, width: int = 144) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        write_png(folder / f"{number}.png", texture(number))
    return folder


@pytest.mark.parametrize(
    ("domain", "aberrated", "clean"),
    [
        ("source", "Syn/S1/train", "Syn/gt"),
        ("target", "Real-Sim/S1/train", None),
        ("test", "Real-Sim/S1/val", "Real-Sim/S1/val_gt"),
    ],
)
def test_folders_follow_the_realab_layout(
    photographs: Path, tmp_path: Path, domain: str, aberrated: str, clean: str | None
) -> None:
    out = tmp_path / "realab"
    calls: list[tuple[int, int]] = []
    count = simulate_folder(
        photographs,
        ["manufactured"],
        out,
        domain=domain,
        lens_name="S1",
        seed=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert count == 3
    assert calls == [(1, 3), (2, 3), (3, 3)]
    folders = {str(path.parent.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    notes = f"simulated/{domain}"
    assert folders == {folder for folder in (aberrated, clean, notes) if folder}
    lens = load_lens("manufactured")
    for number in range(3):
        name = f"{number}.png"
        image = read_image(photographs / name)
        expected = simulate_image(image, lens, seed=3, name=name)
        np.testing.assert_array_equal(read_image(out / aberrated / name), expected)
        if clean:
            np.testing.assert_array_equal(read_image(out / clean / name), image)


def test_the_lens_names_its_folder_and_source_is_the_default(
    photographs: Path, tmp_path: Path
) -> None:
    simulate_folder(photographs, ["prescription"], tmp_path / "out")
    assert len(list((tmp_path / "out/Syn/prescription/train").iterdir())) == 3


def test_an_image_is_the_same_whatever_lies_beside_it(photographs: Path, tmp_path: Path) -> None:
    simulate_folder(photographs, ["prescription"], tmp_path / "three")
    (photographs / "0.png").unlink()
    simulate_folder(photographs, ["prescription"], tmp_path / "two")
    for number in (1, 2):
        name = f"Syn/prescription/train/{number}.png"
        assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _small(folder: Path) -> None:
    write_png(folder / "9_small.png", texture()[:20])


def _twins(folder: Path) -> None:
    Image.fromarray(texture()).save(folder / "0.bmp")


def _truncated(folder: Path) -> None:
    path = folder / "9_broken.png"
    write_png(path, texture())
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_empty, "photographs: holds no image"),
        (_small, r"9_small\.png: the image is 144x20, smaller than the PSFs .* 31x31"),
        (_twins, r"0\.bmp would be written under the same name|0\.png: 0\.bmp would be"),
        (_truncated, r"9_broken\.png: unreadable image"),
    ],
)
def test_a_bad_folder_is_refused_before_anything_is_written(
    photographs: Path, tmp_path: Path, damage, message: str
) -> None:
    damage(photographs)
    with pytest.raises(QdmrError, match=message) as caught:
        simulate_folder(photographs, ["prescription"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(QdmrError, match="nowhere"):
        simulate_folder(tmp_path / "nowhere", ["prescription"], out)
    with pytest.raises(QdmrError, match="use manufactured or prescription"):
        simulate_folder(photographs, ["perscription"], out)
    with pytest.raises(SettingsError, match="source, target, test; it is 'train'"):
        simulate_folder(photographs, ["prescription"], out, domain="train")
    out.write_text("a file where the folder should be")
    with pytest.raises(QdmrError, match="out"):
        simulate_folder(photographs, ["prescription"], out)


def test_a_full_disk_leaves_no_half_written_file(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(QdmrError, match="disk is full"):
        simulate_folder(photographs, ["prescription"], tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def pictures(out: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every picture below a folder."""
    found = out.rglob("*.png")
    return {str(p.relative_to(out)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def contents(out: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in pictures(out).items()}


@pytest.fixture
def lens(tmp_path: Path) -> str:
    """The file of a lens with one PSF, which takes milliseconds."""
    file = tmp_path / "quick.npz"
    PSFGrid(np.full((1, 1, 3, 3, 3), 1 / 9)).save(file)
    return str(file)


def test_many_lenses_write_what_each_alone_writes(
    photographs: Path, lens: str, tmp_path: Path
) -> None:
    PSFGrid(np.eye(3)[None, None, None].repeat(3, 2) / 3).save(tmp_path / "other.npz")
    lenses = [lens, str(tmp_path / "other.npz")]
    calls: list[tuple[int, int]] = []
    count = simulate_folder(
        photographs, lenses, tmp_path / "both", progress=lambda *call: calls.append(call)
    )
    assert count == 3
    assert calls == [(done, 6) for done in range(1, 7)]
    for one in lenses:
        simulate_folder(photographs, [one], tmp_path / "alone")
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "both")) == 9
    # Each lens of a test set has its own clean pictures.
    simulate_folder(photographs, lenses, tmp_path / "test", domain="test")
    assert len(contents(tmp_path / "test")) == 12
    with pytest.raises(SettingsError, match="a lens name needs a single lens; there are 2"):
        simulate_folder(photographs, lenses, tmp_path / "named", lens_name="S1")


def test_what_is_complete_is_kept(photographs: Path, lens: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    simulate_folder(photographs, [lens], out)
    first = pictures(out)
    calls: list[tuple[int, int]] = []
    simulate_folder(photographs, [lens], out, progress=lambda *call: calls.append(call))
    assert calls == [(3, 3)]
    assert pictures(out) == first

    # A picture that is missing or cut, a changed and a new photograph are made; the rest stays.
    (out / "Syn/quick/train/0.png").unlink()
    (out / "Syn/gt/1.png").write_bytes(b"cut")
    (out / "Syn/gt/.tmp-left-by-a-kill").write_bytes(b"half")
    write_png(photographs / "2.png", texture(12))
    write_png(photographs / "3.png", texture(3))
    simulate_folder(photographs, [lens], out)
    changed = {name for name, found in pictures(out).items() if found != first.get(name)}
    assert changed == {
        *(f"Syn/quick/train/{number}.png" for number in (0, 2, 3)),
        *(f"Syn/gt/{number}.png" for number in (1, 2, 3)),
    }
    simulate_folder(photographs, [lens], tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
    assert not list(out.rglob(".tmp-*"))

    # Another seed makes other noise, and the same clean pictures.
    before = pictures(out)
    simulate_folder(photographs, [lens], out, seed=1)
    kept = {name for name, found in pictures(out).items() if found == before[name]}
    assert kept == {f"Syn/gt/{number}.png" for number in range(4)}

    # Damaged notes keep nothing.
    for note in (out / "simulated/source").iterdir():
        note.write_text('{"made": {"Syn/gt/0.png": 5}}')
    simulate_folder(photographs, [lens], out)
    assert contents(out) == contents(tmp_path / "fresh")


def test_an_interrupted_simulation_goes_on(
    photographs: Path, lens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    simulate_folder(photographs, [lens], tmp_path / "undisturbed")

    def broken(image: np.ndarray, *rest: object, name: str, **more: object) -> np.ndarray:
        if name == "2.png":
            raise QdmrError("the disk has gone")
        return simulate_image(image, *rest, name=name, **more)

    with monkeypatch.context() as patch:
        patch.setattr("qdmr_ray.data.simulation.simulate_image", broken)
        with pytest.raises(QdmrError, match="has gone"):
            simulate_folder(photographs, [lens], out)
    first = pictures(out)
    assert len(first) == 4
    simulate_folder(photographs, [lens], out)
    assert first.items() <= pictures(out).items()
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_second_process_with_the_same_set_is_refused(
    photographs: Path, lens: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with claimed(open_location(out), print, work="simulating", within="simulated/source"):
        with pytest.raises(QdmrError, match=rf"^{out}: process .* is simulating into this folder"):
            simulate_folder(photographs, [lens], out)
        simulate_folder(photographs, [lens], out, domain="test")
    simulate_folder(photographs, [lens], out)


def test_from_a_store_to_a_store(
    photographs: Path, lens: str, tmp_path: Path, faulty_store: FaultyStore
) -> None:
    source = any_path(f"s3://{faulty_store.bucket}/clean")
    for file in photographs.iterdir():
        location_of(source).join(file.name).write_bytes_atomic(file.read_bytes())
    out = f"s3://{faulty_store.bucket}/out"
    for _ in range(2):
        simulate_folder(source, [lens], out)
    simulate_folder(photographs, [lens], tmp_path / "local")
    stored = {
        name.removeprefix("out/"): data
        for name, data in faulty_store.stored().items()
        if name.startswith("out/") and name.endswith(".png")
    }
    assert stored == contents(tmp_path / "local")
    # What was complete was not written again.
    assert faulty_store.count(method="PUT", path=r"out/Syn/gt/0\.png") == 1
