"""Whole-image inference: any size, both integer types, folders with bad files among them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate import restore, restore_files, restore_tensor
from qdmr_ray.evaluate.codebook import compute as codebook
from qdmr_ray.evaluate.metrics.lpips import LPIPS
from qdmr_ray.models.files import LoadedModel, save_model
from qdmr_ray.nets import (
    QDMR,
    VQGAN,
    NetworkSettings,
    RestorationNetwork,
    RestorationNetworkSettings,
    SwinSettings,
)
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.photographs.files import Photograph, read_photograph, write_photograph
from qdmr_ray.restore import restoration, streamed
from qdmr_ray.restore.inputs import Failure
from qdmr_ray.restore.restoration import Report, RestoreSettings, pad_to_multiple
from qdmr_ray.stages import compute
from qdmr_ray.storage import open_location

SMALL = NetworkSettings(
    widths=(8, 8, 8, 8),
    residual_blocks=1,
    codebook_size=4,
    code_dim=8,
    swin=SwinSettings(groups=1, blocks=1, heads=2, window=2),
)


class Output(NamedTuple):
    image: Tensor


class Brighten(RestorationNetwork):
    """Adds an amount to every pixel, and remembers the sizes and the mode that it was run in."""

    multiple = 16

    def __init__(self, amount: float = 0.0) -> None:
        super().__init__(RestorationNetworkSettings())
        self.amount = nn.Parameter(torch.tensor(amount))
        self.sizes: list[tuple[int, ...]] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Output:
        self.sizes.append(tuple(x.shape[-2:]))
        self.modes.append(self.training)
        return Output(x + self.amount)


class Told(Report):
    """What restoring tells, a line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begun(self, path: Path, number: int, total: int) -> None:
        self.lines.append(f"begun {path.name} {number}/{total}")

    def advanced(self, share: float) -> None:
        self.lines.append(str(share))

    def restored(self, path: Path, result: Path, lost: Sequence[str]) -> None:
        self.lines.append(" ".join([f"restored {result.name}", *lost]))

    def failed(self, failure: Failure) -> None:
        self.lines.append(f"failed {failure.path.name}")


def loaded(network: nn.Module) -> LoadedModel:
    return LoadedModel(network=network, kind="qdmr_base", step=1, digest="", source="")


def photograph(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_padding_reflects_to_and_fro() -> None:
    row = torch.arange(3.0).view(1, 1, 1, 3)

    padded, size = pad_to_multiple(row, 8)

    assert size == (1, 3)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 5].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_padding_agrees_with_torch_where_torch_can() -> None:
    x = torch.rand(2, 3, 40, 50)

    padded, _ = pad_to_multiple(x, 32)

    assert torch.equal(padded, nn.functional.pad(x, (0, 14, 0, 24), mode="reflect"))


def test_nothing_is_padded_that_fits() -> None:
    x = torch.rand(1, 3, 32, 64)

    assert pad_to_multiple(x, 32)[0] is x


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 53), (16, 32), (15, 17)])
def test_any_size_comes_back_at_its_own_size(size: tuple[int, int]) -> None:
    network = Brighten()
    x = torch.rand(2, 3, *size)

    restored = restore_tensor(network, x)

    assert torch.equal(restored, x)
    assert [side % 16 for side in network.sizes[0]] == [0, 0]


def test_a_real_network_takes_a_single_pixel() -> None:
    torch.manual_seed(0)

    restored = restore(photograph(0, 1, 1), loaded(QDMR(SMALL)))

    assert restored.shape == (1, 1, 3)


def test_result_is_clamped_and_the_mode_left_as_it_was() -> None:
    network = Brighten(0.5).train()

    restored = restore_tensor(network, torch.tensor([0.25, 0.75]).repeat(1, 3, 16, 8))

    assert sorted(set(restored.flatten().tolist())) == [0.75, 1.0]
    assert network.modes == [False]
    assert network.training


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_unchanged_pixels_survive_exactly(kind: type) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (9, 13, 3)).astype(kind)

    restored = restore(image, loaded(Brighten()))

    assert restored.dtype == kind
    assert np.array_equal(restored, image)


def test_values_are_rounded_not_cut() -> None:
    image = np.full((4, 4, 3), 100, dtype=np.uint8)

    assert restore(image, loaded(Brighten(0.6 / 255)))[0, 0, 0] == 101
    assert restore(image, loaded(Brighten(0.4 / 255)))[0, 0, 0] == 100
    assert restore(image, loaded(Brighten(-1.0)))[0, 0, 0] == 0


def test_runs_in_the_networks_own_precision() -> None:
    image = photograph(1)

    assert np.array_equal(restore(image, loaded(Brighten().double())), image)


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    """As PyTorch is for cuDNN, and anybody may have it for matrix products."""
    before = switches()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def switches() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


class Distance(nn.Module):
    """In the place of LPIPS."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).mean()


def restored(network: nn.Module) -> object:
    return restore(photograph(0), loaded(network))


def counted(network: nn.Module) -> object:
    assert isinstance(network, VQGAN)
    return codebook.count_codes(network, [photograph(0, 16, 16).transpose(2, 0, 1)])


def measured(network: nn.Module) -> object:
    with patch("qdmr_ray.nets.lpips.build_lpips", lambda *_: network):
        measure = LPIPS(weights=None, reference="").open("cpu")
    return measure(photograph(0), photograph(1))


@pytest.mark.usefixtures("tf32_allowed")
@pytest.mark.parametrize(
    ("kind", "run"),
    [
        (Brighten, restored),
        (partial(QDMR, SMALL), restored),
        (partial(VQGAN, SMALL), counted),
        (Distance, measured),
    ],
)
def test_float32_is_float32_on_a_gpu_too(
    kind: Callable[[], nn.Module],
    run: Callable[[nn.Module], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU: what is asked for a CPU is asked for one, and the switches are read from
    within the network."""
    exact = compute.tensor_float_32
    for module in (restoration, streamed, codebook, compute):
        monkeypatch.setattr(
            module, "tensor_float_32", lambda compute, _: exact(compute, torch.device("cuda"))
        )
    seen: set[tuple[bool, bool]] = set()
    network = kind()
    for layer in network.modules():
        layer.register_forward_pre_hook(lambda *_: seen.add(switches()))

    run(network)

    assert seen == {(False, False)}
    assert switches() == (True, True)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(QdmrError, match="shape"):
        restore(image, loaded(Brighten()))


def test_a_path_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = QDMR(SMALL).eval()
    save_model(open_location(tmp_path), network, kind="qdmr_base", step=3, digest="d")
    image = photograph(2)

    assert np.array_equal(restore(image, tmp_path), restore(image, loaded(network)))
    with pytest.raises(QdmrError, match="nowhere"):
        restore(image, tmp_path / "nowhere")


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
    assert told.lines[:4] == ["begun a.png 1/5", "1.0", "restored a.png", "begun b.png 2/5"]
    assert told.lines[-3:] == ["begun d.jpg 5/5", "1.0", "restored d.jpg"]


def test_a_photograph_is_told_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", photograph(0))
    (tmp_path / "b.png").write_text("no picture")
    torch.manual_seed(0)
    told = Told()

    restore_files([tmp_path], loaded(QDMR(SMALL)), tmp_path / "out", told)

    shares = [float(line) for line in told.lines[1:] if line[0].isdigit()]
    assert len(shares) > 10
    assert 0.9 < shares[-1] <= 1
    assert told.lines[0] == "begun a.png 1/2"
    assert told.lines[-3:] == ["restored a.png", "begun b.png 2/2", "failed b.png"]


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
    assert told.lines[::3] == ["begun a.png 1/2", "begun b.png 2/2"]


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

    monkeypatch.setattr(restoration, "read_photograph", broken)

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

    assert told.lines[2] == "restored a.jpg"
    assert told.lines[5].startswith(f"restored b.jpg {tmp_path / 'b.jpg'}: its EXIF data")


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


def test_restoring_does_not_import_ray() -> None:
    code = "import sys, qdmr_ray.evaluate; print('ray' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


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
