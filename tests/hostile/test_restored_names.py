"""No result of ``restore`` replaces another, or a photograph that is still to be restored."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.limits import files_below

from qdmr_ray.models.files import load_model, save_model
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.restore import files as restoring
from qdmr_ray.storage import open_location


class Restored:
    """Restores into ``out`` without a network, and counts what is computed."""

    def __init__(self, root: Path, network: NetworkSettings) -> None:
        place = open_location(root / "model")
        save_model(place, QDMR(network), kind="qdmr_base", step=1, digest="d")
        self.root, self.model, self.computed = root, load_model(place), 0

    def __call__(self, *files: str, out: str = "out") -> list[str]:
        """Returns the reasons of the failures."""
        paths = [self.root / file for file in files]
        failures = restoring.restore_files(paths, self.model, self.root / out)
        return [failure.reason for failure in failures]

    def restore(self, image: np.ndarray, *_: Any) -> np.ndarray:
        self.computed += 1
        return 255 - image


@pytest.fixture
def restored(
    tmp_path: Path, tiny_network: NetworkSettings, monkeypatch: pytest.MonkeyPatch
) -> Restored:
    found = Restored(tmp_path, tiny_network)
    monkeypatch.setattr(restoring, "restore", found.restore)
    for number, name in enumerate(("x/a.png", "y/a.png", "y/b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_png(tmp_path / name, np.full((4, 6, 3), number, np.uint8))
    return found


def test_of_two_photographs_of_one_name_the_second_fails(restored: Restored) -> None:
    (reason,) = restored("x/a.png", "y/a.png", "y/b.png")
    assert "y/a.png: its result" in reason
    assert "out/a.png would replace that of" in reason
    assert "x/a.png; name another --out" in reason
    assert restored.computed == 2


@pytest.mark.parametrize("out", ["y", "link", "x/../y"])
@pytest.mark.parametrize("order", [("x/a.png", "y/a.png"), ("y/a.png", "x/a.png")])
def test_a_photograph_that_is_to_be_restored_is_not_replaced(
    restored: Restored, tmp_path: Path, order: tuple[str, str], out: str
) -> None:
    (tmp_path / "link").symlink_to("y")
    before = files_below(tmp_path / "y")
    reasons = sorted(restored(*order, out=out))
    assert "x/a.png: its result" in reasons[0]
    assert "y/a.png, which is to be restored, too; name another --out" in reasons[0]
    assert "y/a.png: its result would overwrite it; name another --out" in reasons[1]
    assert (files_below(tmp_path / "y"), restored.computed) == (before, 0)


def test_a_result_of_another_ending_replaces_no_photograph(
    restored: Restored, tmp_path: Path
) -> None:
    (tmp_path / "y" / "a.png").rename(tmp_path / "z.png")
    (tmp_path / "x" / "a.png").rename(tmp_path / "z.photo")
    before = (tmp_path / "z.png").read_bytes()
    reasons = restored("z.photo", "z.png", out=".")
    assert len(reasons) == 2
    assert (tmp_path / "z.png").read_bytes() == before


def test_a_disk_for_which_two_names_are_one(
    restored: Restored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "y" / "a.png").rename(tmp_path / "y" / "A.png")
    write = restoring.write_photograph

    def written(result: Path, *arguments: Any) -> list[str]:
        lost = write(result, *arguments)
        # Such a disk finds the file under the other name as well.
        os.link(result, result.with_name("A.png"))
        return lost

    monkeypatch.setattr(restoring, "write_photograph", written)
    (reason,) = restored("x/a.png", "y/A.png")
    assert "out/A.png would replace that of" in reason


LONG = {
    "252 bytes without an ending": "x" * 252,
    "255 bytes without an ending": "x" * 255,
    "252 bytes in characters of three": "\u20ac" * 84,
    "252 bytes that are not UTF-8": os.fsdecode(b"\xe9" * 252),
}


@pytest.mark.parametrize("name", LONG.values(), ids=LONG.keys())
def test_a_result_whose_name_no_disk_takes_is_refused_first(
    restored: Restored, tmp_path: Path, name: str
) -> None:
    (tmp_path / "x" / "a.png").rename(tmp_path / name)
    (reason,) = restored(name)
    assert "bytes, and disks take 255: give the photograph a shorter one" in reason
    assert restored.computed == 0


def test_the_longest_name(restored: Restored, tmp_path: Path) -> None:
    (tmp_path / "x" / "a.png").rename(tmp_path / ("x" * 251))
    assert restored("x" * 251) == []
    assert (tmp_path / "out" / f"{'x' * 251}.png").is_file()


def test_restored_again_a_result_is_replaced(restored: Restored, tmp_path: Path) -> None:
    assert restored("x/a.png", "y/b.png") == restored("x/a.png", "y/b.png") == []
    assert sorted(files_below(tmp_path / "out")) == ["a.png", "b.png"]
