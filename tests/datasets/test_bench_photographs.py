"""The benchmark's photographs: their list, the split of any folder, and the data made of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qdmr_ray.data.demo import demo_photographs, packaged_photograph
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import open_location

SCRIPT = Path(__file__).parents[2] / "datasets" / "bench_photographs.py"
# Small, for speed; the PSFs need 45 pixels.
WIDTH = 96


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_photographs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Types are looked up in the module by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _noise(place: Path) -> Path:
    """A folder of ten photographs of noise, which no two sets can share unseen."""
    random = np.random.default_rng(0)
    place.mkdir()
    for number in range(10):
        write_png(place / f"p{number}.png", random.integers(0, 256, (70, 100, 3), np.uint8))
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _noise(tmp_path / "photographs")


@pytest.fixture(scope="module")
def data(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of such photographs, which tests only read."""
    root = tmp_path_factory.mktemp("bench")
    bench.build(root / "data", photographs=_noise(root / "noise"), seed=0, width=WIDTH)
    return root / "data"


def _files(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and "simulated" not in p.parts)
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_the_list_is_split_by_photograph(bench: ModuleType) -> None:
    photographs = bench.bench_photographs()
    assert len(photographs) >= 40
    assert len({p.name for p in photographs}) == len(photographs)
    assert len({p.sha256 for p in photographs}) == len(photographs)
    counts = {part: sum(p.set == part for p in photographs) for part in bench.SETS}
    assert sum(counts.values()) == len(photographs)
    assert counts["test"] >= 12
    assert all(p.author and p.licence and p.title for p in photographs)
    # Kept for an independent check.
    assert "lomiri-wallpapers-16.04" not in {p.package for p in photographs}


def test_what_the_demo_tests_with_trains_nothing(bench: ModuleType) -> None:
    tests = {(p.package, p.file) for p in demo_photographs() if p.domain == "test"}
    trains = {
        (p.package, p.file) for p in bench.bench_photographs() if p.set in ("source", "target")
    }
    assert not tests & trains


def test_files_of_the_installed_packages_are_those_of_the_list(bench: ModuleType) -> None:
    import hashlib

    for photo in bench.bench_photographs():
        if not photo.is_debian:
            data = packaged_photograph(photo.package, photo.file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == photo.sha256, photo.name


def test_a_folder_is_split_by_seed_alone(bench: ModuleType, folder: Path) -> None:
    first, again = bench.split_folder(folder, 0), bench.split_folder(folder, 0)
    assert first == again
    assert first != bench.split_folder(folder, 1)
    assert {part: len(files) for part, files in first.items()} == {
        "source": 3,
        "target": 3,
        "validation": 1,
        "test": 3,
    }
    names = [name for files in first.values() for name in files]
    assert sorted(names) == sorted(path.stem for path in folder.iterdir())


def test_a_frame_is_the_middle_of_a_photograph_and_never_enlarged(
    bench: ModuleType, tmp_path: Path
) -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    # 266.7 rows remain of the 300.
    image[:14] = image[-14:] = 255
    write_png(tmp_path / "a.png", image)
    frame = bench.cut_frame(tmp_path / "a.png", 960)
    assert frame.shape == (256, 384, 3)
    assert frame.max() == 0
    assert bench.cut_frame(tmp_path / "a.png", 250).shape == (160, 240, 3)


@pytest.mark.slow
def test_data_are_the_same_bytes_and_go_on(
    bench: ModuleType, data: Path, folder: Path, tmp_path: Path
) -> None:
    arguments = ["--photographs", str(folder), "--width", str(WIDTH), "--out", str(tmp_path / "a")]
    assert bench.main(arguments) == 0
    made = _files(tmp_path / "a")
    assert made == _files(data)
    # An interrupted run: a frame and a picture are missing, a dataset too.
    sorted((tmp_path / "a/photographs/source").iterdir())[0].unlink()
    sorted((tmp_path / "a/realab/Syn/singlet/train").iterdir())[1].unlink()
    (tmp_path / "a/oracle/manifest.json").unlink()
    kept = sorted((tmp_path / "a/photographs/test").iterdir())[0]
    before = kept.stat().st_mtime_ns
    assert bench.main(arguments) == 0
    assert _files(tmp_path / "a") == made
    assert kept.stat().st_mtime_ns == before


def test_the_three_datasets_differ_by_one_lens_each(data: Path) -> None:
    sets = {
        name: read_manifest(open_location(data / name)).sets
        for name in ("packed", "oracle", "source_lens")
    }
    packed, oracle, own = sets["packed"], sets["oracle"], sets["source_lens"]
    assert packed["test"].content == oracle["test"].content != own["test"].content
    assert packed["source"].content == own["source"].content != oracle["source"].content
    assert packed["target"].content == oracle["target"].content == own["target"].content
    realab = data / "realab"
    for truth in (realab / "Real-Sim/singlet/val_gt").iterdir():
        other = realab / "Real-Sim/prescription/val_gt" / truth.name
        assert np.array_equal(read_image(truth), read_image(other))


def test_what_cannot_be_is_one_line(
    bench: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--photographs", str(folder), "--width", str(WIDTH), "--out", str(out)]
    (out / "photographs/target").mkdir(parents=True)
    write_png(out / "photographs/target/foreign.png", np.zeros((8, 8, 3), np.uint8))
    assert bench.main(arguments) == 1
    assert "not of this benchmark; choose an empty folder for --out" in capsys.readouterr().err
    same = [*arguments[:-1], str(tmp_path / "same"), "--target-lens", "prescription"]
    assert bench.main(same) == 1
    assert "prescription: has the same name as prescription" in capsys.readouterr().err
    for path in sorted(folder.iterdir())[:4]:
        path.unlink()
    assert bench.main(arguments) == 1
    error = capsys.readouterr().err
    assert "holds 6 photographs; a benchmark takes 8 or more" in error
    assert error.count("\n") == 1


def test_a_machine_without_apt_is_told_what_to_do(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench.main(["--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "apt-get is not there" in error
    assert "--photographs" in error
    assert error.count("\n") == 1
