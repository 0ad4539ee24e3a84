"""Folders of photographs through a lens: the Realab layout, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdmr_ray.data.simulation import simulate_folder
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.lens import load_lens
from qdmr_ray.optics.simulate import simulate_image
from qdmr_ray.photographs.decode import read_image, write_png


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
        "manufactured",
        out,
        domain=domain,
        lens_name="S1",
        seed=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert count == 3
    assert calls == [(1, 3), (2, 3), (3, 3)]
    folders = {str(path.parent.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert folders == {folder for folder in (aberrated, clean) if folder}
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
    simulate_folder(photographs, "prescription", tmp_path / "out")
    assert len(list((tmp_path / "out/Syn/prescription/train").iterdir())) == 3


def test_an_image_is_the_same_whatever_lies_beside_it(photographs: Path, tmp_path: Path) -> None:
    simulate_folder(photographs, "prescription", tmp_path / "three")
    (photographs / "0.png").unlink()
    simulate_folder(photographs, "prescription", tmp_path / "two")
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
        simulate_folder(photographs, "prescription", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(QdmrError, match="nowhere"):
        simulate_folder(tmp_path / "nowhere", "prescription", out)
    with pytest.raises(QdmrError, match="use manufactured or prescription"):
        simulate_folder(photographs, "perscription", out)
    with pytest.raises(SettingsError, match="source, target, test; it is 'train'"):
        simulate_folder(photographs, "prescription", out, domain="train")
    out.write_text("a file where the folder should be")
    with pytest.raises(QdmrError, match="out"):
        simulate_folder(photographs, "prescription", out)


def test_a_full_disk_leaves_no_half_written_file(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(QdmrError, match="disk is full"):
        simulate_folder(photographs, "prescription", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
