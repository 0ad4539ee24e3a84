"""Folders are understood, and everything wrong with them is named before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qdmr_ray.data.packing.folders import (
    DatasetFolders,
    ImageFolder,
    check_folders,
    find_realab,
    list_images,
)
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import write_png


def fill(folder: Path, names: Sequence[str], size: tuple[int, int] = (8, 12)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((*size, 3), 7, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def realab(tmp_path: Path) -> Path:
    root = tmp_path / "Realab"
    fill(root / "Syn" / "gt", ["1.png", "2.png"])
    for lens in ("S1", "S2"):
        fill(root / "Syn" / lens / "train", ["1.png", "2.png"])
        fill(root / "Real-Sim" / lens / "train", ["t.png"])
        fill(root / "Real-Sim" / lens / "val", ["v.png"])
        fill(root / "Real-Sim" / lens / "val_gt", ["v.png"])
        fill(root / "Real-Snap" / f"{lens}_train_2K", ["r.png"])
        fill(root / "Real-Snap" / f"{lens}_val_2K", ["s.png"])
    return root


def test_photographs_are_listed_by_name_and_other_files_left_out(tmp_path: Path) -> None:
    fill(tmp_path, ["b.png", "a.JPG", "c.tif", ".hidden.png"])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "c.tif"]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match=r"nowhere: cannot be listed"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(QdmrError, match=r"empty: holds no image"):
        list_images(tmp_path / "empty")


@pytest.mark.parametrize("above", [False, True])
def test_real_sim_is_found_with_its_test_pairs(realab: Path, above: bool) -> None:
    found = find_realab(realab.parent if above else realab, "S2", "Real-Sim")
    assert found == DatasetFolders(
        lens="S2",
        source=ImageFolder(images=realab / "Syn/S2/train", ground_truth=realab / "Syn/gt"),
        target=ImageFolder(images=realab / "Real-Sim/S2/train"),
        test=ImageFolder(
            images=realab / "Real-Sim/S2/val", ground_truth=realab / "Real-Sim/S2/val_gt"
        ),
    )
    records = check_folders(found)
    assert [record.name for record in records["source"]] == ["1", "2"]
    assert (records["test"][0].height, records["test"][0].width) == (8, 12)


def test_real_snap_has_no_ground_truth(realab: Path) -> None:
    found = find_realab(realab, "S1", "Real-Snap")
    assert found.target == ImageFolder(images=realab / "Real-Snap/S1_train_2K")
    assert found.test == ImageFolder(images=realab / "Real-Snap/S1_val_2K")
    assert check_folders(found)["test"][0].ground_truth is None


def test_the_only_lens_and_target_need_no_name(tmp_path: Path) -> None:
    fill(tmp_path / "Syn/gt", ["1.png"])
    fill(tmp_path / "Syn/mine/train", ["1.png"])
    fill(tmp_path / "Real-Sim/mine/train", ["t.png"])
    found = find_realab(tmp_path)
    assert found.lens == "mine"
    assert found.test is None


def test_a_choice_is_asked_for_by_name(realab: Path) -> None:
    with pytest.raises(QdmrError, match=r"set lens to one of those found there: S1, S2"):
        find_realab(realab)
    with pytest.raises(QdmrError, match=r"set target to one of .*: Real-Sim, Real-Snap"):
        find_realab(realab, "S1")
    with pytest.raises(QdmrError, match=r"no lens 'S3'; there is: S1, S2"):
        find_realab(realab, "S3")


def test_another_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match=r"Syn/gt: no such folder; expected the Realab layout"):
        find_realab(tmp_path)
    fill(tmp_path / "Syn/gt", ["1.png"])
    fill(tmp_path / "Syn/S1/train", ["1.png"])
    with pytest.raises(QdmrError, match=r"no target photographs of lens S1; expected Real-Sim/S1"):
        find_realab(tmp_path)


def pair(tmp_path: Path, images: Sequence[str], truth: Sequence[str]) -> DatasetFolders:
    return DatasetFolders(
        source=ImageFolder(
            images=fill(tmp_path / "aberrated", images), ground_truth=fill(tmp_path / "gt", truth)
        )
    )


def test_endings_may_differ_within_a_pair(tmp_path: Path) -> None:
    records = check_folders(pair(tmp_path, ["1.jpg", "2.png"], ["2.tif", "1.png"]))["source"]
    partners = [(record.image.name, record.ground_truth.name) for record in records]
    assert partners == [("1.jpg", "1.png"), ("2.png", "2.tif")]


def test_names_without_a_partner_are_listed_for_both_sides(tmp_path: Path) -> None:
    folders = pair(tmp_path, ["a.png", "x.png"], ["a.png", "p.png", "q.png", "r.png", "s.png"])
    with pytest.raises(
        QdmrError, match=r"only in .*aberrated: x; only in .*gt: p, q, r and 1 more"
    ):
        check_folders(folders)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match=r"a\.png: has the same name as a\.jpg"):
        check_folders(pair(tmp_path, ["a.png", "a.jpg"], ["a.png"]))


def test_sizes_that_differ_are_given(tmp_path: Path) -> None:
    folders = pair(tmp_path, ["a.png"], ["a.png"])
    fill(tmp_path / "gt", ["a.png"], size=(8, 10))
    with pytest.raises(QdmrError, match=r"a\.png is 12 x 8 pixels .* is 10 x 8"):
        check_folders(folders)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    folders = pair(tmp_path, ["a.png"], ["a.png"])
    (tmp_path / "gt" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(QdmrError, match=r"gt/a\.png: unreadable image"):
        check_folders(folders)


def test_a_pair_that_differs_only_by_rotation_mark_fits(tmp_path: Path) -> None:
    folders = pair(tmp_path, ["a.png"], ["a.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.zeros((12, 8, 3), dtype=np.uint8))
    turned.save(tmp_path / "gt" / "a.png", exif=exif)
    assert check_folders(folders)["source"][0].width == 12


def test_progress_counts_every_record(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    folders = pair(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"])
    check_folders(folders, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


def test_no_set_at_all_is_refused() -> None:
    with pytest.raises(QdmrError, match="name at least one folder"):
        check_folders(DatasetFolders())


def test_written_pictures_are_found(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((4, 4, 3), dtype=np.uint8))
    assert list_images(tmp_path) == [tmp_path / "a.png"]
