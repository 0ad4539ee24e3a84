"""The ``qdmr`` command as its users meet it: help, exit codes, one clear line for bad input, and
nothing half-written after it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import typer
import yaml
from PIL import Image

from qdmr_ray.cli import main as cli
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.format.verify import verify
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, VQGAN, NetworkSettings
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import open_location

HEIGHT, WIDTH = 40, 48
GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of error, and that there is nothing else."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("qdmr: ")
        assert "Traceback" not in self.err
        return lines[0]


Command = Callable[..., Outcome]


@pytest.fixture
def qdmr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """``qdmr("data", "pack", …)``: the command in this process; Ray must not be started."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qdmr", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("bad input must be told before Ray is started")

    monkeypatch.chdir(tmp_path)  # where a contact sheet goes
    monkeypatch.setenv("QDMR_VERBOSE", "")  # set by -v
    monkeypatch.setattr(ray, "init", no_ray)
    return run


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


FOLDERS = ("Syn/gt", "Syn/S1/train", "Real-Sim/S1/train", "Real-Sim/S1/val", "Real-Sim/S1/val_gt")


@pytest.fixture
def realab(tmp_path: Path) -> Path:
    """Two photographs in each folder of the Realab layout."""
    root = tmp_path / "Realab"
    for seed, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        for i in range(2):
            write_png(root / folder / f"{i}.png", noise(10 * seed + i))
    return root


@pytest.fixture
def model(tmp_path: Path, tiny_network: NetworkSettings) -> Path:
    """A restoration network that gives its input back: global_residual, not trained yet."""
    folder = tmp_path / "runs" / "tiny" / "base" / "final"
    network = QDMR(replace(tiny_network, global_residual=True))
    save_model(open_location(folder), network, kind="qdmr_base", step=1, digest="")
    return folder


@pytest.fixture
def experiment(tmp_path: Path, tiny_dataset: Path) -> Path:
    """A tiny experiment on the tiny dataset, that nothing stands in the way of."""
    stage = {"crop": 16, "iterations": 1, "lpips": 0}
    values = {
        "run": ["vqgan", "base"],
        "data": {"path": str(tiny_dataset)},
        "network": {
            "widths": [8, 16],
            "residual_blocks": 1,
            "swin": {"groups": 1, "blocks": 1, "heads": 2, "window": 4},
        },
        "discriminator": {"width": 4},
        "stages": {"vqgan": {**stage, "semantic": 0}, "base": stage},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


# -- help and usage ------------------------------------------------------------------------------


def commands() -> dict[tuple[str, ...], Any]:
    """Every command by the words that call it."""
    found: dict[tuple[str, ...], Any] = {}

    def visit(path: tuple[str, ...], command: Any) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found[path] = command
        for name, child in (inner or {}).items():
            visit((*path, name), child)

    visit((), typer.main.get_command(cli.app))
    return found


COMMANDS = commands()
every_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


def test_the_commands_are_there() -> None:
    wanted = ["demo", "train", "evaluate", "restore", "report", "verify", "doctor"]
    assert {(name,) for name in wanted} <= COMMANDS.keys()
    assert {("data", name) for name in ("simulate", "pack", "inspect")} <= COMMANDS.keys()


@every_command
def test_help_explains_everything_and_gives_an_example(
    words: tuple[str, ...], qdmr: Command
) -> None:
    shown = qdmr(*words, "--help")

    assert shown.code == 0
    assert shown.err == ""
    text = " ".join(shown.out.split())
    example = COMMANDS[words].epilog or ""
    assert example.startswith("Example:  qdmr ")
    assert " ".join(example.split()) in text
    assert len((COMMANDS[words].help or "").strip()) > 20
    options = [p for p in COMMANDS[words].params if p.param_type_name == "option"]
    assert options
    for option in options:
        assert (option.help or "").strip(), option.name


@every_command
def test_the_example_in_the_help_can_be_typed(words: tuple[str, ...]) -> None:
    typed = shlex.split((COMMANDS[words].epilog or "").removeprefix("Example:"))
    assert tuple(typed[: len(words) + 1]) == ("qdmr", *words)
    # Parses the arguments as the command would; unknown options and missing arguments raise.
    COMMANDS[words].make_context(" ".join(words), typed[len(words) + 1 :])


@pytest.mark.parametrize("words", [(), ("data",)])
def test_groups_list_their_commands(words: tuple[str, ...], qdmr: Command) -> None:
    shown = qdmr(*words, "--help")
    assert shown.code == 0
    assert "qdmr d" in shown.out  # "Start with:  qdmr demo", "Example:  qdmr data pack …"
    for path in COMMANDS:
        if path[:-1] == words:
            assert path[-1] in shown.out


@every_command
def test_an_unknown_option_is_wrong_usage(words: tuple[str, ...], qdmr: Command) -> None:
    told = qdmr(*words, "--no-such-option")
    assert told.code == 2
    assert "--no-such-option" in told.err or "Missing" in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    "words", [("no-such-command",), ("data", "no-such-command"), ("restore",), ("train",)]
)
def test_wrong_usage_exits_2(words: tuple[str, ...], qdmr: Command) -> None:
    told = qdmr(*words)
    assert told.code == 2
    assert "Usage: " in told.err
    assert "Traceback" not in told.err


def test_help_needs_neither_torch_nor_ray() -> None:
    """A process of its own: this one has imported everything."""
    code = (
        "import sys, qdmr_ray.cli.main; "
        "print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_of_its_own_prints_the_line_and_nothing_else(tmp_path: Path) -> None:
    arguments = ["data", "pack", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "qdmr_ray.cli", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert outcome.line.startswith(f"qdmr: {tmp_path / 'none'}: no such folder")


def test_verbose_shows_the_traceback_wherever_it_stands(tmp_path: Path, qdmr: Command) -> None:
    words = ("data", "pack", tmp_path / "none", "--out", tmp_path / "out")
    plain = qdmr(*words)
    for shown in (qdmr("-v", *words), qdmr(*words, "--verbose")):
        assert shown.code == 1
        assert "Traceback" in shown.err
        assert "QdmrError" in shown.err
        assert shown.err.splitlines()[-1] == plain.line


def test_an_unforeseen_error_is_one_line_too(
    realab: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("qdmr_ray.data.packing.pack.pack", broken)
    told = qdmr("data", "pack", realab, "--out", realab.parent / "out")
    assert told.code == 1
    assert told.line == "qdmr: ZeroDivisionError: first second (-v shows where)"


def test_an_interruption_is_told_with_its_own_code(
    realab: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qdmr_ray.data.packing.pack.pack", interrupted)
    told = qdmr("data", "pack", realab, "--out", realab.parent / "out")
    assert told.code == 130
    assert "run the same command again" in told.line


# -- packing: what can be wrong with folders of photographs ---------------------------------------


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
        (("--target-set", "Real-Fake"), "target_set must be one of Real-Sim, Real-Snap"),
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


# -- training: everything is checked before Ray is started ----------------------------------------

BAD_SETTINGS = [
    ("stages.vqgan.cropp=16", 2, "did you mean stages.vqgan.crop?"),
    ("stages.vqgan.crop=20", 2, "stages.vqgan.crop must be a multiple of 8 pixels"),
    ("stages.vqgan.l1=-1", 2, "stages.vqgan.l1 must be at least 0; it is -1"),
    ("run=[base]", 2, "run has base without vqgan before it"),
    ("data.path=", 2, "data.path"),
    ("data.path=''", 2, "data.path"),
    ("stages.vqgan.crop=72", 1, "72"),
    ("stages.base.crop=72", 1, "72"),
    ("stages.base.lpips=1", 1, "weights.vgg16"),
    ("data.path=/no/such/folder", 1, "/no/such/folder: no packed dataset"),
]


@pytest.mark.parametrize(
    ("override", "code", "told"), BAD_SETTINGS, ids=[s[0] for s in BAD_SETTINGS]
)
def test_bad_experiments_are_told_before_anything_starts(
    override: str,
    code: int,
    told: str,
    experiment: Path,
    qdmr: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = experiment.parent / "runs"
    monkeypatch.setenv("TORCH_HOME", str(runs))  # where VGG's weights are not

    outcome = qdmr("train", experiment, "--storage", runs, "--set", override)

    assert outcome.code == code
    assert told in outcome.line
    assert not runs.exists()


def test_a_crop_that_is_too_large_names_the_photograph(experiment: Path, qdmr: Command) -> None:
    told = qdmr(
        "train", experiment, "--storage", experiment.parent, "--set", "stages.vqgan.crop=72"
    )
    assert told.code == 1
    assert "96x64" in told.line.replace(" ", "")
    assert ".png" in told.line


def test_the_semantic_term_without_weights_says_how_to_get_them(
    experiment: Path, qdmr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(experiment.parent / "torch"))
    words = ("network.widths=[8,8,8,16]", "network.swin.window=2", "stages.vqgan.semantic=0.1")
    overrides = [part for word in words for part in ("--set", word)]
    told = qdmr("train", experiment, "--storage", experiment.parent / "runs", *overrides)
    assert told.code == 1
    for part in ("vgg19-dcbb9e9d.pth", "weights.vgg19", "torchvision", "semantic=0"):
        assert part in told.line
    assert not (experiment.parent / "runs").exists()


def test_stages_that_cannot_be_trained(experiment: Path, qdmr: Command) -> None:
    runs = experiment.parent / "runs"
    unknown = qdmr("train", experiment, "--storage", runs, "--stage", "uda")
    assert (unknown.code, "vqgan, base" in unknown.line) == (2, True)
    early = qdmr("train", experiment, "--storage", runs, "--stage", "base")
    assert (early.code, "vqgan is not trained yet" in early.line) == (1, True)
    missing = qdmr("train", experiment.with_name("none.yaml"), "--storage", runs)
    assert (missing.code, "no such file" in missing.line) == (1, True)
    assert not runs.exists()


def test_data_that_is_not_packed(realab: Path, experiment: Path, qdmr: Command) -> None:
    """The folder of photographs itself, where the packed dataset was meant."""
    for command in (
        ("train", experiment, "--storage", realab.parent / "runs", "--set", f"data.path={realab}"),
        ("data", "inspect", realab),
    ):
        told = qdmr(*command)
        assert told.code == 1
        assert told.line.startswith(f"qdmr: {realab}: no packed dataset")
        assert "qdmr data pack" in told.line
    assert not (realab.parent / "runs").exists()


def test_a_settings_error_of_the_demo_comes_at_once(tmp_path: Path, qdmr: Command) -> None:
    told = qdmr("demo", "--out", tmp_path / "demo", "--set", "stages.uda.iteration=3")
    assert told.code == 2
    assert "did you mean stages.uda.iterations?" in told.line
    assert not (tmp_path / "demo").exists()


# -- restoring ------------------------------------------------------------------------------------


def test_restores_photographs_of_any_kind_and_size(
    tmp_path: Path, model: Path, qdmr: Command
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    write_png(photos / "odd.png", noise(1, 13, 21))
    Image.fromarray(noise(2)[..., 0]).save(photos / "grey.tif")

    done = qdmr("restore", photos, "--checkpoint", model, "--out", tmp_path / "out")

    assert done.code == 0
    restored = {path.stem: read_image(path) for path in (tmp_path / "out").iterdir()}
    assert restored.keys() == {"odd", "grey"}
    np.testing.assert_array_equal(restored["odd"], noise(1, 13, 21))
    np.testing.assert_array_equal(restored["grey"], np.dstack([noise(2)[..., 0]] * 3))


def test_a_bad_photograph_does_not_stop_the_others(
    tmp_path: Path, model: Path, qdmr: Command
) -> None:
    good, bad, out = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "out"
    write_png(good, noise(1))
    bad.write_bytes(good.read_bytes()[:-500])

    outcome = qdmr("restore", bad, good, tmp_path / "none.png", "--checkpoint", model, "--out", out)

    assert outcome.code == 1
    assert [path.name for path in out.iterdir()] == ["good.png"]
    told = [line for line in outcome.err.splitlines() if line.startswith("qdmr: ")]
    assert len(told) == 2
    assert str(bad) in told[0]
    assert str(tmp_path / "none.png") in told[1]
    assert "Traceback" not in outcome.err


def test_a_checkpoint_of_another_network_size(tmp_path: Path, model: Path, qdmr: Command) -> None:
    write_png(tmp_path / "photo.png", noise(1))
    description = json.loads((model / "model.json").read_text())
    description["settings"]["codebook_size"] = 32
    (model / "model.json").write_text(json.dumps(description))

    told = qdmr("restore", tmp_path / "photo.png", "--checkpoint", model, "--out", tmp_path / "out")

    assert told.code == 1
    assert told.line.startswith(f"qdmr: {model / 'model.safetensors'}: weights of another network")
    assert "quantizer.codes is (16, 8)" in told.line
    assert "(32, 8)" in told.line
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_are_none(tmp_path: Path, model: Path, qdmr: Command) -> None:
    write_png(tmp_path / "photo.png", noise(1))
    words = ("restore", tmp_path / "photo.png", "--out", tmp_path / "out", "--checkpoint")

    missing = qdmr(*words, tmp_path / "none")
    assert (missing.code, "no model.json there" in missing.line) == (1, True)
    (model / "model.safetensors").write_bytes(b"damaged")
    damaged = qdmr(*words, model)
    assert (damaged.code, "differs from its checksum" in damaged.line) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_vqgan_restores_nothing(
    tmp_path: Path, tiny_network: NetworkSettings, qdmr: Command
) -> None:
    """Its output only imitates the target's look; evaluate refuses it too."""
    folder = tmp_path / "vqgan" / "final"
    save_model(open_location(folder), VQGAN(tiny_network), kind="vqgan", step=1, digest="")
    write_png(tmp_path / "photo.png", noise(1))

    told = qdmr(
        "restore", tmp_path / "photo.png", "--checkpoint", folder, "--out", tmp_path / "out"
    )

    assert told.code == 1
    assert "VQGAN" in told.line
    assert not (tmp_path / "out").exists()


# -- evaluating and verifying ---------------------------------------------------------------------


def test_evaluating_what_is_no_run(
    tmp_path: Path, model: Path, tiny_network: NetworkSettings, qdmr: Command
) -> None:
    """All of it is told before Ray starts, which takes seven seconds."""
    vqgan = tmp_path / "vqgan" / "final"
    save_model(open_location(vqgan), VQGAN(tiny_network), kind="vqgan", step=1, digest="")
    for words, reason in (
        ((tmp_path / "none",), "neither a run folder nor a trained model"),
        ((model,), "name the packed dataset with --data"),
        ((model, "--data", tmp_path), "no packed dataset"),
        ((vqgan, "--data", tmp_path), "VQGAN"),
    ):
        told = qdmr("evaluate", *words)
        assert told.code == 1
        assert reason in told.line
        assert str(words[0] if reason == "VQGAN" else words[-1]) in told.line
    assert not list(tmp_path.rglob("evaluation*"))


def test_verify_takes_two_dtypes(qdmr: Command) -> None:
    told = qdmr("verify", GOLDEN, "--dtype", "float16")
    assert told.code == 2
    assert "float64 or float32" in told.line


# -- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with 64 kB of room: a real one where it may be mounted, else one that refuses."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    rename = os.replace

    def no_room(source: str | Path, destination: str | Path) -> None:
        if folder in Path(destination).parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, destination)

    monkeypatch.setattr(os, "replace", no_room)
    yield folder


@pytest.fixture
def large_realab(tmp_path: Path) -> Path:
    """Photographs that 64 kB can't hold, however they are stored."""
    root = tmp_path / "large"
    for seed, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        write_png(root / folder / "0.png", noise(seed, 200, 200))
    return root


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


def test_restoring_onto_a_full_disk(
    full_disk: Path, large_realab: Path, model: Path, qdmr: Command
) -> None:
    outcome = qdmr(
        *("restore", large_realab / "Syn/gt/0.png"),
        *("--checkpoint", model, "--out", full_disk / "out"),
    )
    assert outcome.code == 1
    (told,) = [line for line in outcome.err.splitlines() if line.startswith("qdmr: ")]
    assert "the disk is full" in told
    assert not (full_disk / "out").exists()


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
