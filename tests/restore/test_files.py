"""Photograph files: any format, folders with bad files among them, and work that overlaps."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from brighten import SMALL, Brighten, Output, loaded, photograph
from PIL import ExifTags, Image
from torch import Tensor

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate import restore, restore_files
from qdmr_ray.nets import QDMR
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.photographs.files import Photograph, read_photograph, write_photograph
from qdmr_ray.restore import files as restoring
from qdmr_ray.restore.files import Report
from qdmr_ray.restore.inputs import Failure
from qdmr_ray.restore.restoration import RestoreSettings


class Told(Report):
    """What restoring tells, a line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def begins(self) -> list[str]:
        return [line for line in self.lines if line.startswith("begun")]

    @property
    def ends(self) -> list[str]:
        return [line for line in self.lines if line.startswith(("restored", "failed"))]

    def begun(self, path: Path, number: int, total: int) -> None:
        self.lines.append(f"begun {path.name} {number}/{total}")

    def advanced(self, share: float) -> None:
        self.lines.append(str(share))

    def restored(self, path: Path, result: Path, lost: Sequence[str]) -> None:
        self.lines.append(" ".join([f"restored {result.name}", *lost]))

    def failed(self, failure: Failure) -> None:
        self.lines.append(f"failed {failure.path.name}")


def test_folders_patterns_and_files_are_restored_under_their_names(tmp_path: Path) -> None:
    for folder, name in (("folder", "a"), ("folder", "b"), ("other", "c1"), ("other", "c2")):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_png(tmp_path / folder / f"{name}.png", photograph(ord(name[-1])))
    Image.fromarray(photograph(5)).save(tmp_path / "d.jpg")
    (tmp_path / "folder" / "notes.txt").write_text("no photograph")
    told = Told()

    failures = restore_files(
        [tmp_path / "folder", tmp_path / "other" / "c?.png", tmp_path / "d.jpg"],
        loaded(Brighten()),
        tmp_path / "deep" / "out",
        told,
    )

    assert failures == []
    names = ["a.png", "b.png", "c1.png", "c2.png", "d.jpg"]
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == names
    assert np.array_equal(read_image(tmp_path / "deep" / "out" / "a.png"), photograph(ord("a")))
    assert told.lines[:2] == ["begun a.png 1/5", "1.0"]
    assert told.lines[-1] == "restored d.jpg"
    assert told.begins == [f"begun {name} {i}/5" for i, name in enumerate(names, start=1)]
    assert told.ends == [f"restored {name}" for name in names]


def test_a_photograph_is_told_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", photograph(0))
    (tmp_path / "b.png").write_text("no picture")
    torch.manual_seed(0)
    told = Told()

    restore_files([tmp_path], loaded(QDMR(SMALL)), tmp_path / "out", told)

    shares = [float(line) for line in told.lines if line[0].isdigit()]
    assert len(shares) > 10
    assert 0.9 < shares[-1] <= 1
    assert told.lines[0] == "begun a.png 1/2"
    assert told.begins == ["begun a.png 1/2", "begun b.png 2/2"]
    assert told.ends == ["restored a.png", "failed b.png"]


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    write_png(tmp_path / "shot[1].png", photograph(0))

    assert restore_files([tmp_path / "shot[1].png"], loaded(Brighten()), tmp_path / "out") == []
    assert (tmp_path / "out" / "shot[1].png").is_file()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    Image.fromarray(photograph(0, 20, 30)).save(tmp_path / "a.png", exif=exif)

    restore_files([tmp_path / "a.png"], loaded(Brighten()), tmp_path / "out")

    expected = np.rot90(photograph(0, 20, 30), -1)
    assert np.array_equal(read_image(tmp_path / "out" / "a.png"), expected)


def test_broken_and_missing_files_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", photograph(0))
    write_png(tmp_path / "c.png", photograph(1))
    broken, missing = tmp_path / "b.png", tmp_path / "missing.png"
    broken.write_bytes((tmp_path / "a.png").read_bytes()[:200])
    files = [tmp_path / "a.png", broken, missing, tmp_path / "c.png"]

    failures = restore_files(files, loaded(Brighten()), tmp_path / "out")

    assert [failure.path for failure in failures] == [broken, missing]
    for failure in failures:
        assert str(failure.path) in failure.reason
        assert "\n" not in failure.reason
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_results_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = tmp_path / "1" / "a.png", tmp_path / "2" / "a.png"
    first.parent.mkdir()
    second.parent.mkdir()
    write_png(first, photograph(0))
    Image.fromarray(photograph(1)).save(second)

    failures = restore_files([first, second], loaded(Brighten()), tmp_path / "out")

    assert [failure.path for failure in failures] == [second]
    assert str(first) in failures[0].reason
    assert np.array_equal(read_image(tmp_path / "out" / "a.png"), photograph(0))


def test_a_photograph_that_is_named_twice_is_restored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "a.png", photograph(0))
    (tmp_path / "b.png").symlink_to("a.png")
    told = Told()
    named = [
        Path("a.png"),
        tmp_path / "a.png",
        Path("../") / tmp_path.name / "a.png",
        Path("*.png"),
    ]

    assert restore_files(named, loaded(Brighten()), Path("out"), told) == []

    # Another name is another result.
    assert told.begins == ["begun a.png 1/2", "begun b.png 2/2"]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(36, "Too long")]
)
def test_what_cannot_be_looked_into_is_named_and_the_others_go_on(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is forbidden to root, who may run this."""
    locked = tmp_path / "locked"
    locked.mkdir()
    write_png(tmp_path / "a.png", photograph(0))
    iterdir = Path.iterdir

    def forbidden(folder: Path) -> Iterator[Path]:
        if folder == locked:
            raise error
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", forbidden)

    failures = restore_files([locked, tmp_path / "a.png"], loaded(Brighten()), tmp_path / "out")

    assert [failure.reason for failure in failures] == [f"{locked}: {error.strerror}"]
    assert (tmp_path / "out" / "a.png").is_file()
    with pytest.raises(
        QdmrError, match=rf"no photograph to restore \({locked}: {error.strerror}\)"
    ):
        restore_files([locked], loaded(Brighten()), tmp_path / "out")


def test_whatever_a_photograph_breaks_the_others_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", photograph(0))

    def broken(path: Path) -> Photograph:
        if path.name == "a.png":
            raise IndexError("out\nof range")
        return read_photograph(path)

    monkeypatch.setattr(restoring, "read_photograph", broken)

    failures = restore_files([tmp_path], loaded(Brighten()), tmp_path / "out")

    assert [failure.reason for failure in failures] == [f"{tmp_path / 'a.png'}: out of range"]
    assert (tmp_path / "out" / "b.png").is_file()


def test_what_the_result_has_no_room_for_is_seen_before_the_network_runs(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5, 3), np.uint16)
    own = Photograph(pixels=pixels, alpha=None, grey=False, exif=Image.Exif(), profile=b"")
    write_photograph(tmp_path / "a.png", own, pixels)
    (tmp_path / "a.png").rename(tmp_path / "deep.jpg")
    Image.fromarray(np.zeros((1, 17_000, 3), np.uint8)).save(tmp_path / "wide.webp", format="PNG")
    network = Brighten()

    failures = restore_files([tmp_path], loaded(network), tmp_path / "out")

    assert [failure.path.name for failure in failures] == ["deep.jpg", "wide.webp"]
    assert "has 16 bits a channel" in failures[0].reason
    assert network.sizes == []
    assert not (tmp_path / "out").exists()


def test_what_a_result_lost_is_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "x" * 65_000
    Image.fromarray(photograph(0)).save(tmp_path / "a.jpg", exif=exif)
    # Pillow writes what it reads a little longer: with the two tags more it is too long.
    long = Image.Exif()
    long[ExifTags.Base.Make] = "x" * 66_000
    Image.fromarray(photograph(0)).save(tmp_path / "b.png", exif=long)
    (tmp_path / "b.png").rename(tmp_path / "b.jpg")
    told = Told()

    assert restore_files([tmp_path], loaded(Brighten()), tmp_path / "out", told) == []

    assert told.ends[0] == "restored a.jpg"
    assert told.ends[1].startswith(f"restored b.jpg {tmp_path / 'b.jpg'}: its EXIF data")


def test_an_out_folder_that_cannot_be_written_to_is_seen_before_the_network_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "a.png", photograph(0))
    network = Brighten()

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", forbidden)
    with pytest.raises(QdmrError, match=r"out cannot be written to \(Permission denied\)"):
        restore_files([tmp_path / "a.png"], loaded(network), tmp_path / "out")
    assert network.sizes == []
    assert not (tmp_path / "out").exists()


def test_a_store_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "a.png", photograph(0))
    with pytest.raises(SettingsError, match=r"--out s3://bucket/night: .* local folders only"):
        restore_files([Path("a.png")], loaded(Brighten()), Path("s3://bucket/night"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_photograph_is_never_overwritten_by_its_result(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", photograph(0))

    failures = restore_files([tmp_path / "a.png"], loaded(Brighten(0.5)), tmp_path)

    assert [failure.path.name for failure in failures] == ["a.png"]
    assert np.array_equal(read_image(tmp_path / "a.png"), photograph(0))


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", photograph(0))
    (tmp_path / "out" / "a.png" / "occupied").mkdir(parents=True)

    failures = restore_files([tmp_path / "a.png"], loaded(Brighten()), tmp_path / "out")

    assert [failure.path.name for failure in failures] == ["a.png"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_too_little_memory_is_a_failure_of_that_file(tmp_path: Path) -> None:
    class Hungry(Brighten):
        def forward(self, x: Tensor) -> Output:
            if x.shape[-1] > 64:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().forward(x)

    write_png(tmp_path / "large.png", photograph(0, 10, 100))
    write_png(tmp_path / "small.png", photograph(0))

    failures = restore_files([tmp_path], loaded(Hungry()), tmp_path / "out")

    assert [failure.path.name for failure in failures] == ["large.png"]
    assert "100x10" in failures[0].reason
    assert (tmp_path / "out" / "small.png").is_file()


def test_nothing_to_restore_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match="no photograph"):
        restore_files([tmp_path], loaded(Brighten()), tmp_path / "out")
    with pytest.raises(QdmrError, match="no photograph"):
        restore_files([tmp_path / "*.png"], loaded(Brighten()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp", ".jpg"])
def test_a_photograph_keeps_its_name_and_format(tmp_path: Path, suffix: str) -> None:
    image = photograph(3)
    source = tmp_path / f"shot{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(image).save(source, **options)
    assert restore_files([source], loaded(Brighten()), tmp_path / "out") == []
    result = tmp_path / "out" / source.name
    with Image.open(source) as before, Image.open(result) as after:
        assert after.format == before.format
    found = read_image(result).astype(int)
    expected = restore(read_image(source), loaded(Brighten())).astype(int)
    # JPEG at quality 95 is close, the other formats lose nothing.
    assert np.abs(found - expected).max() <= (40 if suffix == ".jpg" else 0)


def test_sixteen_bits_and_transparency_come_back(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 4)).astype(np.uint16)
    own = Photograph(
        pixels=pixels[..., :3], alpha=pixels[..., 3], grey=False, exif=Image.Exif(), profile=b""
    )
    write_photograph(tmp_path / "deep.png", own, own.pixels)
    model = loaded(Brighten())
    assert restore_files([tmp_path / "deep.png"], model, tmp_path / "out") == []
    found = read_photograph(tmp_path / "out" / "deep.png")
    assert found.pixels.dtype == np.uint16
    assert np.array_equal(found.pixels, own.pixels)
    assert found.alpha is not None
    assert np.array_equal(found.alpha, pixels[..., 3])


def test_settings_that_cannot_be_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dtype float16: choose float32 or bfloat16"):
        RestoreSettings(dtype="float16")
    with pytest.raises(SettingsError, match=r"scratch folder .*missing is not there"):
        RestoreSettings(scratch=tmp_path / "missing")
    write_png(tmp_path / "a.png", photograph(0))
    for device, reason in (
        ("cuda:99", "can't be used: PyTorch finds .* here"),
        ("meta", "can't be used"),
        ("gpu", "is unknown"),
    ):
        settings = RestoreSettings(device=device)
        with pytest.raises(SettingsError, match=f"device {device} {reason}.* name cpu, cuda or"):
            restore_files(
                [tmp_path / "a.png"], loaded(Brighten()), tmp_path / "out", settings=settings
            )
    assert not (tmp_path / "out").exists()


# Seconds until a latch that nobody opens fails its test.
PATIENCE = 30


class Watched:
    """Three photographs a, b and c, what happens to them in order, and latches on it: ``waits``
    names an event that another one waits for before it goes on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.out = folder / "photos", folder / "out"
        self.folder.mkdir()
        for seed, name in enumerate("abc"):
            write_png(self.folder / f"{name}.png", photograph(seed))
        self.events: list[str] = []
        self.waits: dict[str, str] = {}
        self.errors: dict[str, BaseException] = {}
        self.told = Told()
        self._changed = threading.Condition()
        monkeypatch.setattr(restoring, "read_photograph", self._read)
        monkeypatch.setattr(restoring, "restore", self._compute)
        monkeypatch.setattr(restoring, "write_photograph", self._write)
        monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def run(self) -> list[str]:
        failures = restore_files([self.folder], loaded(Brighten()), self.out, self.told)
        return [failure.path.name for failure in failures]

    def happened(self, event: str) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
            if awaited := self.waits.get(event):
                assert self._changed.wait_for(lambda: awaited in self.events, PATIENCE), event
        if error := self.errors.pop(event, None):
            raise error

    def _read(self, path: Path) -> Photograph:
        self.happened(f"read {path.stem}")
        found = read_photograph(path)
        self.happened(f"has {path.stem}")
        return found

    def _compute(self, pixels: np.ndarray, *_: object) -> np.ndarray:
        name = next(n for seed, n in enumerate("abc") if np.array_equal(pixels, photograph(seed)))
        self.happened(f"compute {name}")
        return 255 - pixels

    def _write(self, path: Path, *arguments: np.ndarray) -> list[str]:
        try:
            self.happened(f"write {path.stem}")
            return write_photograph(path, *arguments)
        finally:
            self.happened(f"wrote {path.stem}")

    @property
    def most_written_at_once(self) -> int:
        writing = [event.split()[0] for event in self.events]
        return max(itertools.accumulate({"write": 1, "wrote": -1}.get(e, 0) for e in writing))


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def test_the_next_is_read_and_the_last_is_written_while_the_network_computes(
    watched: Watched,
) -> None:
    watched.waits = {"compute a": "has b", "compute b": "write a", "write a": "has c"}

    assert watched.run() == []

    assert watched.events.index("compute b") < watched.events.index("wrote a")
    assert watched.told.ends == ["restored a.png", "restored b.png", "restored c.png"]
    for seed, name in enumerate("abc"):
        np.testing.assert_array_equal(
            read_image(watched.out / f"{name}.png"), 255 - photograph(seed)
        )


def test_no_more_than_one_photograph_is_read_ahead(watched: Watched) -> None:
    watched.waits = {"compute a": "has b", "compute b": "has c"}

    watched.run()

    for name, ahead in (("a", "c"), ("b", "d")):
        before = watched.events[: watched.events.index(f"compute {name}")]
        assert f"read {ahead}" not in before


def test_results_are_told_in_order_however_long_each_is_written(watched: Watched) -> None:
    watched.waits = {"write a": "wrote b", "write b": "compute c"}

    watched.run()

    assert watched.events.index("wrote b") < watched.events.index("wrote a")
    assert watched.told.ends == ["restored a.png", "restored b.png", "restored c.png"]
    assert watched.most_written_at_once >= 2


@pytest.mark.parametrize(("limit", "value"), [("MOST_WRITERS", 1), ("MOST_UNWRITTEN", 0)])
def test_what_is_written_at_once_has_a_limit(
    limit: str, value: int, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, limit, value)
    watched.waits = {"write a": "compute b", "write b": "compute c"}

    assert watched.run() == []

    assert watched.most_written_at_once == 1


def test_interrupted_it_writes_what_it_has_computed_and_nothing_else(watched: Watched) -> None:
    watched.waits = {"write a": "compute b", "compute b": "has c"}
    watched.errors = {"compute b": KeyboardInterrupt()}

    with pytest.raises(KeyboardInterrupt):
        watched.run()

    assert watched.told.ends == ["restored a.png"]
    assert [path.name for path in watched.out.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_image(watched.out / "a.png"), 255 - photograph(0))
    assert not [t for t in threading.enumerate() if t.name.startswith("qdmr-")]


@pytest.mark.parametrize("event", ["read b", "has b", "compute b", "write b"])
def test_a_failure_anywhere_is_that_photographs_own_and_told_in_its_turn(
    event: str, watched: Watched
) -> None:
    watched.waits = {"write a": "compute c"}
    watched.errors = {event: ValueError("broken")}

    assert watched.run() == ["b.png"]

    assert watched.told.ends == ["restored a.png", "failed b.png", "restored c.png"]
    assert sorted(path.name for path in watched.out.iterdir()) == ["a.png", "c.png"]


def test_what_has_too_little_memory_beside_others_is_read_again_alone(watched: Watched) -> None:
    watched.errors = {"read b": MemoryError(), "has c": QdmrError("takes 5 GB of memory")}

    assert watched.run() == []

    for name, before in (("b", "a"), ("c", "b")):
        again = len(watched.events) - watched.events[::-1].index(f"read {name}")
        assert watched.events.count(f"read {name}") == 2
        assert f"wrote {before}" in watched.events[:again]


def test_one_that_wants_the_name_of_a_failed_ones_result_gets_it(watched: Watched) -> None:
    """Although the first is still being written when the turn comes to the second."""
    other = watched.folder / "A.png"
    (watched.folder / "b.png").rename(other)
    watched.errors = {"write a": ValueError("broken")}
    paths = [watched.folder / "a.png", other]

    failures = restore_files(paths, loaded(Brighten()), watched.out, watched.told)

    assert [failure.path.name for failure in failures] == ["a.png"]
    assert [path.name for path in watched.out.iterdir()] == ["A.png"]
    assert watched.events.index("wrote a") < watched.events.index("read A")


def test_all_is_told_on_the_thread_that_called(watched: Watched) -> None:
    threads = set()

    class Threads(Report):
        def begun(self, *_: object) -> None:
            threads.add(threading.get_ident())

        advanced = restored = failed = begun

    watched.told = cast(Told, Threads())
    watched.errors = {"write b": ValueError("broken")}
    watched.run()
    assert threads == {threading.get_ident()}
