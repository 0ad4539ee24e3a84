"""The demo's photographs: split, repeatability, errors."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from qdmr_ray.data import demo
from qdmr_ray.data.demo import Window, build_demo_data, cut_frames, demo_photographs
from qdmr_ray.data.packing.folders import check_folders, find_realab
from qdmr_ray.errors import QdmrError
from qdmr_ray.optics.lens import load_lens
from qdmr_ray.optics.simulate import simulate_image
from qdmr_ray.photographs.decode import read_image, write_png

PHOTOGRAPHS = demo_photographs()
# Small, for speed; the PSFs need 31 pixels.
FRAME = (64, 96)
DEMO_FRAME = (320, 480)


@pytest.fixture(scope="module")
def realab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo_data(tmp_path_factory.mktemp("demo") / "realab", frame=FRAME)


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _photographs(folder: Path) -> set[str]:
    return {path.stem.rsplit("_", 1)[0] for path in folder.iterdir()}


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


def test_no_photograph_is_on_two_sides(realab: Path) -> None:
    source = _photographs(realab / "Syn/gt")
    target = _photographs(realab / "Real-Sim/S1/train")
    test = _photographs(realab / "Real-Sim/S1/val")
    assert source == _photographs(realab / "Syn/S1/train")
    assert test == _photographs(realab / "Real-Sim/S1/val_gt")
    assert source
    assert target
    assert test
    assert not source & target
    assert not source & test
    assert not target & test
    # Both pictures of the motorcycle show the same scene.
    sides = {p.domain for p in PHOTOGRAPHS if p.file.startswith("motorcycle")}
    assert len(sides) == 1
    assert len({p.file for p in PHOTOGRAPHS}) == len(PHOTOGRAPHS)


def test_the_layout_is_realabs(realab: Path) -> None:
    sets = check_folders(find_realab(realab))
    frames = {
        domain: sum(len(p.windows) for p in PHOTOGRAPHS if p.domain == domain)
        for domain in ("source", "target", "test")
    }
    assert {name: len(records) for name, records in sets.items()} == frames
    assert 6 <= frames["test"] <= 8
    assert {(r.height, r.width) for records in sets.values() for r in records} == {FRAME}


def test_the_same_bytes_every_time_and_without_a_network(
    realab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the demo's data must not use the network")

    monkeypatch.setattr(socket, "socket", refuse)
    calls: list[tuple[int, int]] = []
    again = build_demo_data(
        tmp_path / "again", frame=FRAME, progress=lambda done, total: calls.append((done, total))
    )
    assert _files(again) == _files(realab)
    total = sum(len(photograph.windows) for photograph in PHOTOGRAPHS)
    assert calls == [(done, total) for done in range(1, total + 1)]


@pytest.mark.slow
def test_building_into_its_own_folder_again_changes_only_what_the_seed_changes(
    tmp_path: Path,
) -> None:
    first = _files(build_demo_data(tmp_path, frame=FRAME))
    second = _files(build_demo_data(tmp_path, frame=FRAME, seed=1))
    changed = {name for name in first if first[name] != second[name]}
    assert first.keys() == second.keys()
    assert changed == {n for n in first if n.endswith(".png") and "gt/" not in n}


@pytest.mark.parametrize(
    ("domain", "folder", "lens"),
    [
        ("source", "Syn/S1/train", "prescription"),
        ("target", "Real-Sim/S1/train", "manufactured"),
        ("test", "Real-Sim/S1/val", "manufactured"),
    ],
)
def test_each_domain_has_its_lens(realab: Path, domain: str, folder: str, lens: str) -> None:
    photograph = next(p for p in PHOTOGRAPHS if p.domain == domain)
    name = photograph.frame_names[0]
    frame = cut_frames(photograph, FRAME)[0]
    expected = simulate_image(frame, load_lens(lens), seed=0, name=name)
    np.testing.assert_array_equal(read_image(realab / folder / name), expected)


def test_the_domain_gap_is_of_the_intended_size() -> None:
    lenses = {name: load_lens(name) for name in ("prescription", "manufactured")}
    frames = [f for p in PHOTOGRAPHS if p.domain == "test" for f in cut_frames(p, DEMO_FRAME)]
    mean = {
        name: np.mean([_psnr(f, simulate_image(f, lens, seed=0, name="a")) for f in frames])
        for name, lens in lenses.items()
    }
    assert 22 < mean["manufactured"] < 26
    assert mean["manufactured"] + 2 < mean["prescription"] < 30


def test_windows_keep_the_frames_shape_and_stay_inside() -> None:
    assert Window().box(400, 700, (320, 480)) == (50, 0, 650, 400)
    assert Window(2, 1, 0).box(400, 700, (320, 480)) == (400, 0, 700, 200)


def test_too_large_a_frame_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match="frame 640x960 is too large"):
        build_demo_data(tmp_path / "out", frame=(640, 960))
    with pytest.raises(QdmrError, match="smaller than the PSFs"):
        build_demo_data(tmp_path / "out", frame=(20, 30))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_images_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "Real-Sim/S1/val"
    folder.mkdir(parents=True)
    write_png(folder / "holiday.png", np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(QdmrError, match=r"holiday\.png: not of the demo's data"):
        build_demo_data(tmp_path, frame=FRAME)
    assert len(_files(tmp_path)) == 1


def test_a_missing_package_or_photograph_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_FOLDERS", {"skimage": "nowhere", "sklearn": "nowhere"})
    with pytest.raises(QdmrError, match=r"motorcycle_left\.png: this scikit-image comes without"):
        build_demo_data(tmp_path / "out", frame=FRAME)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(QdmrError, match="pip install scikit-image"):
        build_demo_data(tmp_path / "out", frame=FRAME)
    assert not (tmp_path / "out").exists()


def test_credits_name_every_author_and_licence(realab: Path) -> None:
    text = (realab / "CREDITS.md").read_text(encoding="utf-8")
    for photograph in PHOTOGRAPHS:
        line = next(line for line in text.splitlines() if photograph.file in line)
        for part in (photograph.author, photograph.licence, photograph.origin, photograph.domain):
            assert part in line
    assert text.count("CC BY 2.0") == 2
