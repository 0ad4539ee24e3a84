"""``qdmr data``: what can be wrong with folders of photographs, and disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import HEIGHT, WIDTH, Command, noise
from PIL import Image

from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.format.verify import verify
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location


def rename_truth(root: Path) -> None:
    (root / "Syn/gt/1.png").rename(root / "Syn/gt/one.png")


def shrink_truth(root: Path) -> None:
    write_png(root / "Syn/gt/1.png", noise(0, HEIGHT, WIDTH - 1))


def shrink_test_truth(root: Path) -> None:
    write_png(root / "Real-Sim/S1/val_gt/0.png", noise(0, HEIGHT - 1, WIDTH))


def write_text(root: Path) -> None:
    (root / "Real-Sim/S1/train/1.png").write_text("not a photograph")


def truncate_png(root: Path) -> None:
    file = root / "Syn/S1/train/1.png"
    file.write_bytes(file.read_bytes()[:-2000])


def truncate_jpeg(root: Path) -> None:
    """Its header is whole: only decoding finds out, after shards have been written."""
    (root / "Real-Sim/S1/val/1.png").unlink()
    file = root / "Real-Sim/S1/val/1.jpg"
    Image.fromarray(noise(1)).save(file, quality=95)
    file.write_bytes(file.read_bytes()[:-2000])


def empty_file(root: Path) -> None:
    (root / "Syn/gt/0.png").write_bytes(b"")


def empty_target(root: Path) -> None:
    for file in (root / "Real-Sim/S1/train").iterdir():
        file.unlink()


def no_target(root: Path) -> None:
    shutil.rmtree(root / "Real-Sim")


def no_truth(root: Path) -> None:
    shutil.rmtree(root / "Syn/gt")


def two_lenses(root: Path) -> None:
    shutil.copytree(root / "Syn/S1", root / "Syn/S2")


BAD_FOLDERS = [
    (rename_truth, ("names do not match", "Syn/S1/train: 1", "Syn/gt: one")),
    (shrink_truth, ("Syn/S1/train/1.png is 48 x 40", "Syn/gt/1.png is 47 x 40")),
    (shrink_test_truth, ("Real-Sim/S1/val/0.png is 48 x 40", "val_gt/0.png is 48 x 39")),
    (write_text, ("Real-Sim/S1/train/1.png: unreadable image", "replace or remove the file")),
    (truncate_png, ("Syn/S1/train/1.png: unreadable image", "replace or remove the file")),
    (truncate_jpeg, ("Real-Sim/S1/val/1.jpg: unreadable image", "replace or remove the file")),
    (empty_file, ("Syn/gt/0.png: unreadable image",)),
    (empty_target, ("Real-Sim/S1/train: holds no image",)),
    (no_target, ("no target photographs of lens S1", "Real-Sim/S1/train")),
    (no_truth, ("Syn/gt: no such folder",)),
    (two_lenses, ("set lens to one of those found there: S1, S2",)),
]
bad_folders = pytest.mark.parametrize(
    ("damage", "told"), BAD_FOLDERS, ids=[damage.__name__ for damage, _ in BAD_FOLDERS]
)


@bad_folders
def test_bad_folders_are_told_and_no_dataset_is_made(
    damage: Callable[[Path], None], told: tuple[str, ...], realab: Path, qdmr: Command
) -> None:
    damage(realab)
    out = realab.parent / "packed"

    outcome = qdmr("data", "pack", realab, "--out", out)

    assert outcome.code == 1
    for words in told:
        assert words in outcome.line
    assert str(realab) in outcome.line
    # Only decoding shows a cut JPEG: what was packed before it waits for the next try.
    assert not (out / "manifest.json").exists()
    assert out.exists() == (damage is truncate_jpeg)


@bad_folders
def test_bad_folders_do_not_harm_what_was_packed_before(
    damage: Callable[[Path], None], told: tuple[str, ...], realab: Path, qdmr: Command
) -> None:
    out = realab.parent / "packed"
    assert qdmr("data", "pack", realab, "--out", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    damage(realab)

    assert qdmr("data", "pack", realab, "--out", out).code == 1

    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert before.items() <= after.items()


def test_empty_and_missing_folders(tmp_path: Path, model: Path, qdmr: Command) -> None:
    (tmp_path / "empty").mkdir()
    for command in (
        ("data", "pack", "{}", "--out", tmp_path / "out"),
        ("data", "simulate", "{}", "--lens", "prescription", "--out", tmp_path / "out"),
        ("restore", "{}", "--checkpoint", model, "--out", tmp_path / "out"),
        ("report", "{}"),
        ("verify", "{}"),
        ("data", "inspect", "{}"),
    ):
        for folder in (tmp_path / "missing", tmp_path / "empty"):
            told = qdmr(*(folder if word == "{}" else word for word in command))
            assert told.code == 1, command
            told_last = told.err.splitlines()[-1] if command[0] == "restore" else told.line
            assert str(folder) in told_last
            assert [path for path in (tmp_path / "out").glob("**/*") if path.is_file()] == []
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--set", "shard_byte=5"), "unknown setting shard_byte; did you mean shard_bytes?"),
        (("--set", "shard_records=0"), "shard_records must be at least 1; it is 0"),
        (("--set", "shard_records=few"), "shard_records is 'few'"),
        (("--set", "shard_records"), "--set shard_records: write --set"),
        (("--set", "target_set=Real-Fake"), "target_set must be one of Real-Sim, Real-Snap"),
    ],
)
def test_bad_pack_settings(words: tuple[str, ...], hint: str, realab: Path, qdmr: Command) -> None:
    out = realab.parent / "packed"
    told = qdmr("data", "pack", realab, "--out", out, *words)
    assert told.code == 2
    assert hint in told.line
    assert not out.exists()


def test_unusual_photographs_are_packed_and_come_out_right(realab: Path, qdmr: Command) -> None:
    folder = realab / "Real-Sim/S1/train"
    colour = noise(50)
    grey = colour[..., 0]
    grey_16 = np.random.default_rng(51).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    alpha = noise(52)[..., 0]
    wide = colour.astype(float), alpha[..., None] / 255
    on_white = np.rint(wide[0] * wide[1] + 255 * (1 - wide[1])).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    for file in folder.iterdir():
        file.unlink()
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(np.dstack([colour, alpha])).save(folder / "alpha.png")
    Image.fromarray(grey_16).save(folder / "sixteen.png")
    Image.fromarray(colour).save(folder / "turned.png", exif=exif)
    # One side of a pair turned by its mark, the other by its pixels.
    Image.fromarray(colour).save(realab / "Syn/S1/train/1.png", exif=exif)
    write_png(realab / "Syn/gt/1.png", np.rot90(noise(53), -1).copy())

    packed = qdmr("data", "pack", realab, "--out", realab.parent / "packed")

    assert packed.code == 0
    reader = RecordReader(str(realab.parent / "packed"))
    found = {r.name: r.image for r in (reader.read("target", i) for i in range(4))}
    np.testing.assert_array_equal(found["grey"], np.dstack([grey] * 3))
    np.testing.assert_array_equal(found["alpha"], on_white)
    eight = np.rint(grey_16 / 257).astype(np.uint8)
    np.testing.assert_array_equal(found["sixteen"], np.dstack([eight] * 3))
    np.testing.assert_array_equal(found["turned"], np.rot90(colour, -1))
    pair = reader.read("source", 1)
    np.testing.assert_array_equal(pair.image, np.rot90(colour, -1))
    np.testing.assert_array_equal(pair.ground_truth, np.rot90(noise(53), -1))


def test_inspect_counts_and_verifies(realab: Path, qdmr: Command) -> None:
    out = realab.parent / "packed"
    assert qdmr("data", "pack", realab, "--out", out).code == 0

    shown = qdmr("data", "inspect", out, "--verify")
    assert shown.code == 0
    assert read_manifest(open_location(out)).digest[:12] in shown.out
    for words in ("source", "target", "test", "48 x 40  2", "every record agrees"):
        assert words in shown.out

    shard = next(out.glob("target-*.parquet"))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    broken = qdmr("data", "inspect", out, "--verify")
    assert broken.code == 1
    assert f"{shard}: row 0 (Real-Sim/S1/train/0.png) has a wrong checksum" in broken.err
    assert broken.err.splitlines()[-1].startswith(f"qdmr: {out}: 1 bad")
    assert "Traceback" not in broken.err


def test_packing_onto_a_full_disk(full_disk: Path, large_realab: Path, qdmr: Command) -> None:
    told = qdmr("data", "pack", large_realab, "--out", full_disk / "packed")
    assert told.code == 1
    assert told.line.startswith(f"qdmr: {full_disk / 'packed'}")
    assert "the disk is full; free space there or choose another folder" in told.line
    assert list(full_disk.iterdir()) == []


def test_simulating_onto_a_full_disk(full_disk: Path, large_realab: Path, qdmr: Command) -> None:
    told = qdmr(
        *("data", "simulate", large_realab / "Syn/gt"),
        *("--lens", "prescription", "--out", full_disk / "realab"),
    )
    assert told.code == 1
    assert str(full_disk) in told.line
    assert "the disk is full" in told.line
    assert [path for path in full_disk.rglob("*") if path.is_file()] == []


def test_packing_again_when_the_disk_is_full_keeps_the_old_dataset(
    tmp_path: Path, realab: Path, large_realab: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "packed"
    assert qdmr("data", "pack", realab, "--out", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rename = os.replace

    def no_room(source: str | Path, destination: str | Path) -> None:
        # All shards fit, the manifest doesn't.
        if Path(destination).name == "manifest.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, destination)

    monkeypatch.setattr(os, "replace", no_room)
    told = qdmr("data", "pack", large_realab, "--out", out)

    assert told.code == 1
    assert f"{out / 'manifest.json'}: the disk is full" in told.err.splitlines()[-1]
    assert "Traceback" not in told.err
    assert "finished shards wait for the next try" in told.err
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert before.items() <= after.items()
    assert verify(str(out)) == ()
