"""The codebook view: counts, groups and figures on cases known by hand, files, errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook import compute
from qdmr_ray.evaluate.codebook.atlas import SOURCE_COLOUR, TARGET_COLOUR, atlas_picture
from qdmr_ray.evaluate.codebook.compute import (
    codebook_view,
    count_codes,
    cut_crops,
    decode_tiles,
    read_usage,
    renew_view,
    trained_weights,
    write_view,
)
from qdmr_ray.evaluate.codebook.usage import CodebookUsage, SetUsage
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import VQGAN, NetworkSettings
from qdmr_ray.storage import Location, open_location


def usage_of(source: list[int], target: list[int], **more: float) -> CodebookUsage:
    sets = [SetUsage(photographs=1, crops=1, counts=tuple(counts)) for counts in (source, target)]
    return CodebookUsage(source=sets[0], target=sets[1], crop=8, **more)  # type: ignore[arg-type]


class HandMade(VQGAN):
    """Chooses the code that the red channel names, so that counts are known."""

    largest_batch = 0

    def encode_indices(self, x: torch.Tensor) -> torch.Tensor:
        self.largest_batch = max(self.largest_batch, len(x))
        return (x[:, 0] * 255).round().long()


def test_counts_are_exact_and_do_not_depend_on_the_chunks(tiny_network: NetworkSettings) -> None:
    random = np.random.default_rng(3)
    images = [random.integers(0, 16, (3, side, side), np.uint8) for side in (4, 4, 4, 8, 8, 4)]
    expected = np.bincount(
        np.concatenate([image[0].ravel() for image in images]), minlength=16
    ).tolist()
    for batch in (1, 2, 3, 100):
        network = HandMade(tiny_network)
        assert count_codes(network, iter(images), batch=batch).tolist() == expected
        assert network.largest_batch <= min(batch, 3)


def test_what_is_chosen_is_what_the_network_computes_with(tiny_network: NetworkSettings) -> None:
    network = VQGAN(tiny_network).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), np.uint8)
    with torch.inference_mode():
        indices = network(torch.from_numpy(images).float() / 255).indices
    expected = torch.bincount(indices.flatten(), minlength=16).tolist()

    assert count_codes(network, list(images), batch=2).tolist() == expected


def test_codes_are_decoded_alike_in_any_chunks(tiny_network: NetworkSettings) -> None:
    network = VQGAN(tiny_network).eval()
    whole = decode_tiles(network)

    assert whole.shape == (16, 4, 4, 3)
    assert whole.dtype == np.uint8
    with torch.inference_mode():
        last = network.decode_codes(torch.tensor([15]))[0].clamp(0, 1).mul(255).round()
    assert (whole[15] == last.permute(1, 2, 0).numpy()).all()
    for chunk in (1, 5, 16):
        assert np.abs(decode_tiles(network, codes_at_once=chunk).astype(int) - whole).max() <= 1


def test_figures_of_a_case_done_by_hand() -> None:
    # Codes: the source's own, shared, at the limit of the target's own, just shared, dead.
    usage = usage_of([50, 40, 2, 8, 0], [0, 40, 18, 42, 0])

    assert usage.source.perplexity == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in (0.5, 0.4, 0.02, 0.08)))
    )
    assert (usage.source.used, usage.source.used_share) == (4, 0.8)
    assert (usage.target.used, usage.target.used_share) == (3, 0.6)
    assert usage.target_share[:4].tolist() == pytest.approx([0.0, 0.5, 0.9, 0.84])
    assert np.isnan(usage.target_share[4])
    assert usage.groups().tolist() == ["source_own", "shared", "target_own", "shared", "dead"]
    assert usage.group_sizes() == {"source_own": 1, "shared": 2, "target_own": 1, "dead": 1}
    assert usage.target_on_source_codes == 1.0
    assert usage.order() == [0, 1, 3, 2, 4]


def test_frequencies_are_compared_and_not_counts() -> None:
    usage = usage_of([1, 1], [100, 100])

    assert usage.target_share.tolist() == [0.5, 0.5]
    assert usage.group_sizes()["shared"] == 2


def test_codes_of_the_same_share_are_ordered_by_use() -> None:
    assert usage_of([1, 5, 9], [2, 10, 1]).order() == [2, 1, 0]


def test_divergence_from_nothing_in_common_to_the_same() -> None:
    assert usage_of([3, 1], [6, 2]).divergence == 0
    apart = usage_of([3, 1, 0], [0, 0, 5])
    assert apart.divergence == pytest.approx(1.0)
    assert apart.target_on_source_codes == 0
    # (1, 0) and (1/2, 1/2): half of log2(4/3) + (log2(2/3) + log2(2)) / 2.
    between = usage_of([4, 0], [2, 2])
    by_hand = (math.log2(4 / 3) + (math.log2(2 / 3) + 1) / 2) / 2
    assert between.divergence == pytest.approx(by_hand)
    assert between.target_on_source_codes == 0.5


def test_a_stated_threshold_decides_what_is_a_domains_own() -> None:
    counts = [1, 3], [3, 1]

    assert usage_of(*counts, own_share=0.75).group_sizes()["target_own"] == 1
    assert usage_of(*counts, own_share=0.76).group_sizes()["target_own"] == 0


def test_the_dictionary_holds_all_figures_and_gives_the_same_usage_again() -> None:
    usage = usage_of([3, 1, 0], [0, 2, 0])
    content = json.loads(json.dumps(usage.to_dict()))

    assert CodebookUsage.from_dict(content, "codebook.json") == usage
    assert set(content) == {
        "format",
        "codes",
        "crop",
        "own_share",
        "sets",
        "divergence_bits",
        "target_on_source_codes",
        "groups",
        "target_share",
        "weights_sha256",
        "data_digest",
    }
    assert set(content["sets"]["source"]) == {
        "photographs",
        "crops",
        "choices",
        "used",
        "used_share",
        "perplexity",
        "counts",
    }
    assert content["target_share"] == [0.0, 0.8, None]
    assert content["sets"]["source"]["counts"] == [3, 1, 0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("sets"),
        lambda content: content["sets"]["source"].update(counts=[1]),
        lambda content: content["sets"]["source"].update(counts=[-1, 2, 3]),
        lambda content: content["sets"]["target"].update(counts="no"),
    ],
)
def test_a_damaged_file_is_named(damage, tmp_path: Path) -> None:
    place = open_location(tmp_path)
    assert read_usage(place) is None
    content = usage_of([3, 1, 0], [0, 2, 0]).to_dict()
    damage(content)
    (tmp_path / "codebook.json").write_text(json.dumps(content))

    with pytest.raises(QdmrError, match=r"codebook\.json: .*the file is damaged"):
        read_usage(place)


def test_the_atlas_shows_codes_in_order_with_bars_for_their_use() -> None:
    tiles = np.zeros((3, 4, 4, 3), np.uint8)
    tiles[:] = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)[:, None, None]
    atlas = atlas_picture(tiles, usage_of([0, 5, 4], [5, 0, 5]))

    def first_row(colour: tuple[int, ...]) -> int:
        rows = (atlas == np.array(colour)).all(2).any(1)
        assert rows.any()
        return int(rows.argmax())

    def pixels(colour: tuple[int, ...], top: int, bottom: int) -> int:
        return int((atlas[top:bottom] == np.array(colour)).all(2).sum())

    tops = [first_row((0, 200, 0)), first_row((0, 0, 200)), first_row((200, 0, 0))]
    assert tops == sorted(tops)
    # From the lower edge of each tile on; the words above the first use the same colours.
    bands = [(top + 60, top + 90) for top in tops]
    assert [pixels(SOURCE_COLOUR, *band) > 0 for band in bands] == [True, True, False]
    assert [pixels(TARGET_COLOUR, *band) > 0 for band in bands] == [False, True, True]


def test_the_atlas_of_a_large_codebook_stays_small() -> None:
    tiles = np.zeros((4096, 16, 16, 3), np.uint8)
    counts = np.random.default_rng(0).integers(0, 50, (2, 4096))
    atlas = atlas_picture(tiles, usage_of(counts[0].tolist(), counts[1].tolist()))

    assert atlas.shape[1] < 1600
    assert atlas.shape[0] < 2600


@pytest.fixture
def run(add_vqgan, tmp_path: Path, tiny_network: NetworkSettings, tiny_dataset: Path) -> Location:
    """A run folder with nothing but its settings and a VQGAN of random weights."""
    return add_vqgan(tmp_path / "run", tiny_network, tiny_dataset)


def test_a_run_is_counted_the_same_each_time_and_written(run: Location, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    view = codebook_view(run, crops=6, crop=32, progress=lambda d, t: told.append((d, t)))
    write_view(view, open_location(tmp_path / "out"))

    # Codes stand for 2 x 2 pixels in a network that halves once.
    assert view.usage.source.choices == view.usage.target.choices == 6 * 16 * 16
    assert view.usage.source.used > 1
    assert told == [(done, 12) for done in range(1, 13)]
    assert codebook_view(run, crops=6, crop=32).usage == view.usage
    assert read_usage(open_location(tmp_path / "out")) == view.usage
    with Image.open(tmp_path / "out" / "codebook.png") as atlas:
        assert (np.asarray(atlas) == view.atlas).all()


def test_crops_are_spread_and_fit_into_small_photographs(tiny_dataset: Path) -> None:
    reader = RecordReader(str(tiny_dataset))
    count = reader.count("source")
    asked: list[int] = []
    original = reader.crop
    reader.crop = lambda name, index, **place: (  # type: ignore[method-assign]
        asked.append(index) or original(name, index, **place)
    )
    cut = list(cut_crops(reader, "source", crops=2 * count, crop=256, multiple=24))

    assert asked == [index for index in range(count) for _ in range(2)]
    assert {image.shape for image in cut} == {(3, 48, 48)}  # 64 high, a multiple of 24


def test_what_is_missing_is_named(run: Location, tmp_path: Path, tiny_dataset: Path) -> None:
    with pytest.raises(QdmrError, match=r"elsewhere is not a run folder"):
        codebook_view(open_location(tmp_path / "elsewhere"))
    with pytest.raises(QdmrError, match=r"smaller than one code"):
        list(cut_crops(RecordReader(str(tiny_dataset)), "source", crops=1, crop=256, multiple=96))
    assert run.local_path is not None
    config = run.local_path / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace(str(tiny_dataset), str(tmp_path / "no data")))
    with pytest.raises(QdmrError, match=r"no data: no packed dataset"):
        codebook_view(run)
    config.write_text(before)
    shutil.rmtree(run.local_path / "vqgan")
    with pytest.raises(QdmrError, match=r"vqgan/final: no trained VQGAN"):
        codebook_view(run)


def test_a_vqgan_without_a_run_takes_a_dataset(run: Location, tiny_dataset: Path) -> None:
    """As import-weights leaves it."""
    assert run.local_path is not None
    alone = run.join("vqgan", "final")
    (run.local_path / "config.yaml").rename(run.local_path / "elsewhere.yaml")
    with pytest.raises(QdmrError, match=r"vqgan/final: is a model without a run; .*--data"):
        codebook_view(alone)
    seen = codebook_view(alone, data=str(tiny_dataset), crops=3).usage
    (run.local_path / "elsewhere.yaml").rename(run.local_path / "config.yaml")
    assert codebook_view(run, crops=3).usage == seen


def test_the_command_prints_and_writes(
    run: Location, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qdmr_ray.cli.judge import codebook

    codebook(run.uri, data=None, crops=2, out=str(tmp_path / "out"))

    told = capsys.readouterr().out
    assert "perplexity" in told
    assert "of the target's choices fall on codes that the source chooses too" in told
    assert str(tmp_path / "out" / "codebook.png") in told
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "codebook.json",
        "codebook.png",
    ]


def test_the_view_is_renewed_only_for_another_network(
    run: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_network: NetworkSettings
) -> None:
    """`qdmr evaluate` calls this at its end, again for each evaluation."""
    counted: list[str] = []
    original = compute.count_codes
    monkeypatch.setattr(
        compute, "count_codes", lambda *given: counted.append("set") or original(*given)
    )
    place = open_location(tmp_path / "out")
    renew_view(run, place)
    renew_view(run, place)
    assert counted == ["set", "set"]
    usage = read_usage(place)
    assert usage is not None
    assert usage.weights_sha256 == trained_weights(run)
    # What is damaged or lost is made again.
    (tmp_path / "out" / "codebook.json").write_text("{}")
    renew_view(run, place)
    (tmp_path / "out" / "codebook.png").unlink()
    renew_view(run, place)
    assert len(counted) == 6
    network = VQGAN(tiny_network)
    save_model(run.join("vqgan", "final"), network, kind="vqgan", step=2, digest="")
    renew_view(run, place)
    assert len(counted) == 8
    assert read_usage(place) != usage


def test_a_run_without_a_vqgan_has_no_view(tmp_path: Path) -> None:
    renew_view(open_location(tmp_path), open_location(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
