"""Evaluations of photographs that both lenses took, without Ray."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from evaluate.in_process import judge_here
from local_ray import local_ray

import qdmr_ray.data.format.shards as shards_module
import qdmr_ray.data.packing.pack as pack_module
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.compare import compare
from qdmr_ray.evaluate.compare_text import comparison_text
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.gap.sentences import gap_sentences
from qdmr_ray.evaluate.gap.summary import summarize_gap
from qdmr_ray.evaluate.metrics.psnr import psnr
from qdmr_ray.evaluate.metrics.ssim import ssim
from qdmr_ray.evaluate.results import Evaluation, Judged
from qdmr_ray.evaluate.spectrum import spectrum_distance
from qdmr_ray.evaluate.stored import named_apart, read_evaluation
from qdmr_ray.evaluate.zones import psnr_by_zone
from qdmr_ray.models.files import load_model, save_model
from qdmr_ray.nets import QDMR, VQGAN, NetworkSettings
from qdmr_ray.nets.qdmr import SourceOnlyQDMR
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.restore.restoration import restore
from qdmr_ray.storage import open_location

NAMES = ("alley", "bridge", "chapel")
# No multiple of the network's 8 pixels: the padding's codes must not count.
SIZE = (36, 44)
STAGES = ("source_only", "base")


@dataclass(frozen=True)
class Lab:
    """A run of tiny networks, and packed photographs through two lenses."""

    folder: Path
    run: Path

    @property
    def source_lens(self) -> Path:
        return self.folder / "source_lens" / "packed"

    def evaluate(self, out: Path, **options: Any) -> dict[str, Any]:
        """What evaluation.json holds."""
        place = open_location(self.run)
        return evaluate_run(place, out=str(out), codebook=False, **options).to_dict()


def photograph(name: str, lens: str) -> np.ndarray:
    """Noise that each lens blurs in its own way; ``gt`` is the clean photograph."""
    clean = np.random.default_rng(NAMES.index(name)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    if lens == "gt":
        return clean
    axis = 0 if lens == "source_lens" else 1
    return ((clean.astype(int) + np.roll(clean, 1, axis=axis)) // 2).astype(np.uint8)


def packed(folder: Path, lens: str, names: tuple[str, ...] = NAMES) -> Path:
    for name in names:
        for kind in (lens, "gt"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_png(folder / kind / f"{name}.png", photograph(name, kind))
    settings = PackSettings(test_images=lens, test_ground_truth="gt")
    pack(folder, str(folder / "packed"), settings=settings)
    return folder / "packed"


def with_settings(run: Path, **evaluation: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluation"] = {"sheets": False, **evaluation}
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_network: NetworkSettings) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    target = packed(folder / "target_lens", "target_lens")
    lab = Lab(folder, folder / "run")
    packed(folder / "source_lens", "source_lens")
    lab.run.mkdir()
    config = {"name": "run", "run": ["source_only", "vqgan", "base"], "data": {"path": str(target)}}
    (lab.run / "config.yaml").write_text(yaml.safe_dump(config))
    with_settings(lab.run, source_lens=str(lab.source_lens))
    torch.manual_seed(1)
    networks = {
        "source_only": (SourceOnlyQDMR(tiny_network), "source_only"),
        "vqgan": (VQGAN(tiny_network), "vqgan"),
        "base": (QDMR(tiny_network), "qdmr_base"),
    }
    for stage, (network, kind) in networks.items():
        if stage != "source_only":
            # Codes as far apart as features are, so that more than one is chosen.
            torch.nn.init.normal_(network.quantizer.codes, std=0.3)
        final = open_location(lab.run / stage / "final")
        save_model(final, network, kind=kind, step=1, digest="d")
    return lab


@pytest.fixture
def lab(whole: Lab, tmp_path: Path) -> Lab:
    """A copy that a test may change."""
    shutil.copytree(whole.run, tmp_path / "run")
    return Lab(whole.folder, tmp_path / "run")


@pytest.fixture(scope="module")
def evaluated(whole: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The whole lab, evaluated once; where its results lie, and what evaluation.json holds."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        judge_here(patch)
        return out, whole.evaluate(out)


def codes_of(run: Path, stage: str, image: np.ndarray) -> np.ndarray:
    """The codes that an image chooses: int64 (h, w) without the padding's, by the network's own
    forward pass on the whole image."""
    network: Any = load_model(open_location(run / stage / "final")).network
    height, width = image.shape[:2]
    below, beside = -height % network.multiple, -width % network.multiple
    rows = np.pad(image, ((0, below), (0, beside), (0, 0)), mode="reflect")
    x = torch.from_numpy(rows).permute(2, 0, 1).unsqueeze(0).float() / 255
    with torch.inference_mode():
        indices = network(x).indices[0].numpy()
    return indices[: -(-height // 2), : -(-width // 2)]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_workers_of_ray_measure_the_same(
    whole: Lab, evaluated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with local_ray():
        found = whole.evaluate(tmp_path, overrides=["evaluation.workers=2"])
    # Another number of threads rounds other pixels up.
    both = found["gap"]["per_image"], evaluated[1]["gap"]["per_image"]
    for row, expected in zip(*both, strict=True):
        assert row.pop("name") == expected["name"]
        assert row.keys() | {"name"} == expected.keys()
        for part, by_image in row.items():
            for image, values in by_image.items():
                assert values == pytest.approx(expected[part][image], abs=0.01)
    for name, choices in evaluated[1]["gap"]["codes"].items():
        assert found["gap"]["codes"][name]["perplexity"] == pytest.approx(
            choices["perplexity"], rel=0.01
        )


def test_the_gap_is_the_difference_of_both_lenses(
    whole: Lab, evaluated: tuple[Path, dict[str, Any]]
) -> None:
    out, evaluation = evaluated
    gap = evaluation["gap"]
    assert evaluation == json.loads((out / "evaluation.json").read_text())
    assert list(gap["difference"]) == list(gap["source_lens"]) == ["input", *STAGES]
    assert [row["name"] for row in gap["per_image"]] == list(NAMES)
    for stage in ("input", *STAGES):
        found = []
        for name, row, ours in zip(NAMES, gap["per_image"], evaluation["per_image"], strict=True):
            source, truth = photograph(name, "source_lens"), photograph(name, "gt")
            if stage != "input":
                source = restore(source, whole.run / stage / "final")
            assert row["source_lens"][stage]["psnr"] == pytest.approx(psnr(source, truth))
            assert row["source_lens"][stage]["ssim"] == pytest.approx(ssim(source, truth))
            found.append(psnr(source, truth) - ours[stage]["psnr"])
        difference = gap["difference"][stage]["psnr"]
        assert difference["mean"] == pytest.approx(np.mean(found))
        assert difference["median"] == pytest.approx(np.median(found))
        assert difference["ci95"][0] <= difference["mean"] <= difference["ci95"][1]
        own, other = gap["source_lens"][stage]["psnr"], evaluation["statistics"][stage]["psnr"]
        assert own["mean"] - other["mean"] == pytest.approx(difference["mean"])


def test_style_is_the_distance_from_the_target_lens(
    whole: Lab, evaluated: tuple[Path, dict[str, Any]]
) -> None:
    out, evaluation = evaluated
    style, vqgan = evaluation["gap"]["style"], whole.run / "vqgan" / "final"
    found: dict[str, list[tuple[float, ...]]] = {"source": [], "s2t": [], "target": []}
    for name in NAMES:
        source, target = photograph(name, "source_lens"), photograph(name, "target_lens")
        s2t = restore(source, vqgan)
        folder = out / "evaluation" / name
        assert (read_image(folder / "source_lens.png") == source).all()
        assert (read_image(folder / "s2t.png") == s2t).all()
        for kind, image in (("source", source), ("s2t", s2t), ("target", restore(target, vqgan))):
            values = psnr(image, target), ssim(image, target), spectrum_distance(image, target)
            found[kind].append(values)
    assert list(style["statistics"]) == list(found)
    for kind, values in found.items():
        for metric, mean in zip(("psnr", "ssim", "spectrum"), np.mean(values, axis=0), strict=True):
            assert style["statistics"][kind][metric]["mean"] == pytest.approx(mean), (kind, metric)
    change = np.mean(found["s2t"], axis=0) - np.mean(found["source"], axis=0)
    assert style["change"]["psnr"]["mean"] == pytest.approx(change[0])
    assert style["change"]["spectrum"]["mean"] == pytest.approx(change[2])
    assert len(style["frequencies"]) == len(style["spectra_db"]["s2t"])


@pytest.mark.parametrize("stage", ["vqgan", "base"])
def test_codes_are_those_of_the_whole_photographs(
    whole: Lab, evaluated: tuple[Path, dict[str, Any]], stage: str
) -> None:
    found = evaluated[1]["gap"]["codes"]
    assert set(found) == {"vqgan", "base"}, "source_only has no codebook"
    counts = {domain: np.zeros(found[stage]["codes"]) for domain in ("source", "s2t", "target")}
    for name in NAMES:
        source, target = photograph(name, "source_lens"), photograph(name, "target_lens")
        s2t = restore(source, whole.run / "vqgan" / "final")
        for domain, image in (("source", source), ("s2t", s2t), ("target", target)):
            chosen = codes_of(whole.run, stage, image)
            assert chosen.shape == (SIZE[0] // 2, SIZE[1] // 2)
            counts[domain] += np.bincount(chosen.ravel(), minlength=len(counts[domain]))
    shares = {domain: of / of.sum() for domain, of in counts.items()}
    for domain, p in shares.items():
        entropy = -sum(x * math.log(x) for x in p if x)
        assert found[stage]["perplexity"][domain] == pytest.approx(math.exp(entropy))
        assert found[stage]["used"][domain] == (p > 0).sum()
        if domain != "target":
            q = shares["target"]
            sides = ((p, (p + q) / 2), (q, (p + q) / 2))
            bits = sum(x * math.log2(x / y) for s in sides for x, y in zip(*s, strict=True) if x)
            assert found[stage]["divergence_bits"][domain] == pytest.approx(bits / 2, abs=1e-12)
    assert found[stage]["perplexity"]["target"] > 1.5, "the test needs several codes"
    assert list(found[stage]["divergence_bits"]) == ["source", "s2t"]


def test_zones_are_measured_and_compared_with_source_only(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    out, evaluation = evaluated
    zones = evaluation["gap"]["zones"]
    assert zones["baseline"] == "source_only"
    assert list(zones["gain"]) == ["base"]
    found: dict[str, list[dict[str, float]]] = {"input": [], **{stage: [] for stage in STAGES}}
    for name in NAMES:
        for kind, values in found.items():
            image = read_image(out / "evaluation" / name / f"{kind}.png")
            values.append(psnr_by_zone(image, photograph(name, "gt")))
    for zone in ("centre", "middle", "corner"):
        means = {kind: np.mean([v[zone] for v in values]) for kind, values in found.items()}
        for kind, mean in means.items():
            assert zones["psnr"][kind][zone]["mean"] == pytest.approx(mean)
        gain = zones["gain"]["base"][zone]
        assert gain["mean"] == pytest.approx(means["base"] - means["source_only"])
        assert gain["n"] == len(NAMES)


def test_without_the_setting_nothing_is_written_of_it(
    lab: Lab, tmp_path: Path, in_process: list[int]
) -> None:
    with_settings(lab.run)
    evaluation = lab.evaluate(tmp_path / "out")
    assert "gap" not in evaluation
    assert not {"source_lens", "vqgan"} & evaluation["provenance"].keys()
    journal = (tmp_path / "out" / "evaluation" / "results.jsonl").read_text()
    assert '"gap"' not in journal
    written = sorted(f.name for f in (tmp_path / "out" / "evaluation" / "alley").iterdir())
    assert written == ["base.png", "ground_truth.png", "input.png", "source_only.png"]


def test_an_interrupted_evaluation_goes_on_and_ends_alike(
    lab: Lab, tmp_path: Path, in_process: list[int], evaluated: tuple[Path, dict[str, Any]]
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        lab.evaluate(out, progress=stop)
    # As a crash in the middle of a write leaves the last line.
    journal = out / "evaluation" / "results.jsonl"
    with journal.open("a") as file:
        file.write('{"index": 2, "name": "chapel", "values": {}, "gap": {"na')
    assert lab.evaluate(out) == evaluated[1]
    assert in_process == [0, 1, 2]
    # Finished: nothing is left to do, unless a picture is gone.
    assert lab.evaluate(out) == evaluated[1]
    (out / "evaluation" / "bridge" / "s2t.png").unlink()
    assert lab.evaluate(out) == evaluated[1]
    assert in_process[3:] == [1]


@pytest.mark.parametrize("change", ["source_lens", "vqgan", "setting"])
def test_other_photographs_networks_and_settings_start_anew(
    lab: Lab, tmp_path: Path, in_process: list[int], change: str, tiny_network: NetworkSettings
) -> None:
    out = tmp_path / "out"
    before = lab.evaluate(out)
    in_process.clear()
    overrides = []
    if change == "source_lens":
        other = packed(tmp_path / "other", "target_lens")
        overrides = [f"evaluation.source_lens={other}"]
    elif change == "vqgan":
        final = open_location(lab.run / "vqgan" / "final")
        save_model(final, VQGAN(tiny_network), kind="vqgan", step=1, digest="d")
    else:
        overrides = ["evaluation.source_lens=null"]
    after = lab.evaluate(out, overrides=overrides)
    assert in_process == [0, 1, 2]
    assert after["provenance"]["digest"] != before["provenance"]["digest"]
    assert after["stages"] == before["stages"]
    if change == "source_lens":
        # The same lens on both sides has no gap.
        assert {s["psnr"]["mean"] for s in after["gap"]["difference"].values()} == {0.0}


def test_a_run_without_a_vqgan_has_gap_and_zones_alone(
    lab: Lab, tmp_path: Path, in_process: list[int]
) -> None:
    shutil.rmtree(lab.run / "vqgan")
    shutil.rmtree(lab.run / "base")
    evaluation = lab.evaluate(tmp_path / "out")
    gap = evaluation["gap"]
    assert (gap["style"], gap["codes"], gap["zones"]["gain"]) == (None, {}, {})
    assert list(gap["difference"]) == ["input", "source_only"]
    assert not (tmp_path / "out" / "evaluation" / "alley" / "s2t.png").exists()


def test_one_model_alone_is_judged_through_both_lenses(
    lab: Lab, tmp_path: Path, in_process: list[int]
) -> None:
    evaluation = evaluate_run(
        open_location(lab.run / "base" / "final"),
        data=str(lab.folder / "target_lens" / "packed"),
        out=str(tmp_path),
        overrides=[f"evaluation.source_lens={lab.source_lens}"],
    )
    assert evaluation.gap is not None
    assert list(evaluation.gap.difference) == ["input", "base"]
    assert list(evaluation.gap.codes["base"].perplexity) == ["source", "target"]


def test_records_are_found_by_name_in_any_order(
    lab: Lab, tmp_path: Path, in_process: list[int], evaluated: tuple[Path, dict[str, Any]]
) -> None:
    folder = tmp_path / "other"
    packed(folder, "source_lens")
    for kind in ("source_lens", "gt"):
        write_png(folder / kind / "a-first.png", photograph("alley", kind))
    settings = PackSettings(test_images="source_lens", test_ground_truth="gt")
    pack(folder, str(folder / "more"), settings=settings)
    overrides = [f"evaluation.source_lens={folder / 'more'}"]
    found = lab.evaluate(tmp_path / "out", overrides=overrides)
    assert found["gap"] == evaluated[1]["gap"]


def test_records_of_another_layout_are_compared_by_their_pixels(
    lab: Lab, tmp_path: Path, in_process: list[int], evaluated: tuple[Path, dict[str, Any]]
) -> None:
    narrow, other = tmp_path / "narrow", tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
        for module in (pack_module, shards_module):
            patch.setattr(module, "STRIP_PIXELS", 16)
        packed(narrow, "source_lens")
        packed(other, "source_lens")
        write_png(other / "gt" / "alley.png", photograph("bridge", "gt"))
        settings = PackSettings(test_images="source_lens", test_ground_truth="gt")
        pack(other, str(other / "packed"), settings=settings)
    overrides = [f"evaluation.source_lens={narrow / 'packed'}"]
    assert lab.evaluate(tmp_path / "out", overrides=overrides)["gap"] == evaluated[1]["gap"]
    refused = refusal(lab, tmp_path / "none", other / "packed")
    assert "its ground truth of alley isn't the test set's" in refused


def refusal(lab: Lab, out: Path, place: Path, data: Path | None = None) -> str:
    with pytest.raises(QdmrError) as caught:
        lab.evaluate(
            out, overrides=[f"evaluation.source_lens={place}"], data=str(data) if data else None
        )
    message = str(caught.value)
    assert message.startswith(f"evaluation.source_lens={place}: ")
    assert message.endswith("; --set evaluation.source_lens=null evaluates the target lens alone")
    assert "\n" not in message
    assert not out.exists()
    return message


def test_photographs_that_cannot_be_matched_are_refused(
    lab: Lab, tmp_path: Path, in_process: list[int]
) -> None:
    out = tmp_path / "out"
    assert "no packed dataset" in refusal(lab, out, tmp_path / "none")
    fewer = packed(tmp_path / "fewer", "source_lens", ("alley", "chapel"))
    assert "its test set has no bridge; pack all test photographs into it" in refusal(
        lab, out, fewer
    )
    other = tmp_path / "other"
    packed(other, "source_lens")
    pixels = photograph("chapel", "gt")
    pixels[-1, -1, -1] ^= 1
    write_png(other / "gt" / "chapel.png", pixels)
    settings = PackSettings(test_images="source_lens", test_ground_truth="gt")
    pack(other, str(other / "packed"), settings=settings)
    assert "its ground truth of chapel isn't the test set's" in refusal(lab, out, other / "packed")
    pack(other, str(other / "alone"), settings=PackSettings(test_images="source_lens"))
    assert "its test set has no ground truth; pack it" in refusal(lab, out, other / "alone")
    assert "the test set has no ground truth, by which" in refusal(
        lab, out, lab.source_lens, data=other / "alone"
    )
    training = PackSettings(source_images="source_lens", source_ground_truth="gt")
    pack(other, str(other / "training"), settings=training)
    assert "has no test set; it has: source" in refusal(lab, out, other / "training")
    assert in_process == []


def test_a_source_lens_photograph_that_is_damaged_fails_alone(
    lab: Lab, tmp_path: Path, in_process: list[int]
) -> None:
    place = packed(tmp_path / "other", "source_lens")
    (shard,) = place.glob("test-*.parquet")
    data = bytearray(shard.read_bytes())
    at = data.find(np.moveaxis(photograph("bridge", "source_lens"), 2, 1).tobytes())
    data[at + 5] ^= 1
    shard.write_bytes(data)
    evaluation = lab.evaluate(tmp_path / "out", overrides=[f"evaluation.source_lens={place}"])
    assert [failure["name"] for failure in evaluation["failed"]] == ["bridge"]
    assert "wrong checksum" in evaluation["failed"][0]["reason"]
    assert [row["name"] for row in evaluation["gap"]["per_image"]] == ["alley", "chapel"]


def test_a_model_called_as_a_picture_is_refused(
    lab: Lab, tmp_path: Path, in_process: list[int]
) -> None:
    shutil.copytree(lab.run / "base" / "final", tmp_path / "s2t")
    with pytest.raises(QdmrError, match="s2t is a model, and with "):
        evaluate_run(
            open_location(tmp_path / "s2t"),
            data=str(lab.folder / "target_lens" / "packed"),
            out=str(tmp_path / "out"),
            overrides=[f"evaluation.source_lens={lab.source_lens}"],
        )


def test_tables_have_both_lenses_and_zones_when_asked(
    evaluated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, evaluation = evaluated
    stored = [read_evaluation(open_location(out))]
    assert compare(stored).metrics == ["psnr", "ssim"]
    wanted = ["psnr_source", "psnr_corner", "ssim_source", "psnr"]
    found = compare(stored, metrics=wanted, reference=f"{out.name}/source_only")
    assert found.metrics == wanted
    gap = evaluation["gap"]
    for stage in STAGES:
        cells = found.rows[f"{out.name}/{stage}"]
        for metric, table, name in (
            ("psnr_source", gap["source_lens"], "psnr"),
            ("ssim_source", gap["source_lens"], "ssim"),
            ("psnr_corner", gap["zones"]["psnr"], "corner"),
        ):
            assert cells[metric].statistics.mean == table[stage][name]["mean"]
    assert "PSNR corner (dB) ^" in comparison_text(found)
    # An evaluation on the target lens alone has none of them.
    shutil.copy(out / "evaluation.json", tmp_path)
    alone = json.loads((tmp_path / "evaluation.json").read_text())
    del alone["gap"]
    (tmp_path / "evaluation.json").write_text(json.dumps(alone))
    both = [*stored, read_evaluation(open_location(tmp_path))]
    with pytest.raises(SettingsError, match="--metric psnr_corner: not every row has it"):
        compare(named_apart(both), metrics=["psnr_corner"])
    assert compare(named_apart(both), metrics=["psnr"]).metrics == ["psnr"]


def test_sentences_say_what_the_figures_do(evaluated: tuple[Path, dict[str, Any]]) -> None:
    evaluation = Evaluation.from_dict(evaluated[1], "evaluation.json")
    gap = evaluated[1]["gap"]
    first, second, style, *codes, zones = gap_sentences(evaluation)
    assert first.startswith("Source-only: PSNR ")
    assert second.startswith(f"Base: PSNR {gap['source_lens']['base']['psnr']['mean']:.2f} dB on ")
    assert f"a gap of {gap['difference']['base']['psnr']['mean']:+.2f} (95 %: " in second
    change = gap["style"]["change"]["psnr"]["mean"]
    where = "nearer to" if change > 0 else "farther from"
    assert f"s2t images are {abs(change):.2f} dB (95 %: " in style
    assert f"{where} the target lens's pictures" in style
    farther = gap["style"]["change"]["psnr"]["ci95"]
    ends = farther if change > 0 else [-farther[1], -farther[0]]
    assert f"(95 %: {ends[0]:+.2f} to {ends[1]:+.2f}) {where}" in style
    assert [line.split(":")[0] for line in codes] == ["Base", "VQGAN"]
    assert f"{gap['codes']['base']['perplexity']['s2t']:.1f} (s2t)" in codes[0]
    assert f"corner {gap['zones']['gain']['base']['corner']['mean']:+.2f}." in zones
    assert zones.startswith("Base over Source-only by field, dB: centre ")
    assert gap_sentences(evaluation.model_copy(update={"gap": None})) == []


def judged(name: str, **gap: Any) -> Judged:
    values = {"input": {"psnr": 20.0}, "base": {"psnr": 22.0}}
    gap = {"name": name, "source_lens": values, "zones": {}, **gap}
    return Judged.model_validate({"index": 0, "name": name, "values": values, "gap": gap})


def test_a_photograph_without_a_value_counts_in_no_mean() -> None:
    rows = [judged("a"), judged("b", source_lens={"input": {"psnr": None}, "base": {"psnr": 25.0}})]
    gap = summarize_gap(rows, ["base"])
    assert gap.difference["base"]["psnr"].mean == 0.0
    assert gap.difference["base"]["psnr"].n == 1


def test_codebooks_of_unlike_sizes_are_one_line() -> None:
    rows = [
        judged(name, counts={"base": {"target": counts, "source": counts}})
        for name, counts in (("a", (1, 0)), ("b", (1, 0, 0)))
    ]
    with pytest.raises(QdmrError, match="b: base has 3 codes, others have 2"):
        summarize_gap(rows, ["base"])


@pytest.mark.parametrize(
    "gap",
    [
        {"counts": {"base": {"target": [1, 0], "source": [1]}}},
        {"counts": {"base": {"target": [0, 0]}}},
        {"counts": {"base": {"target": [-1, 2]}}},
        {"spectra_db": {"s2t": [1.0]}},
        {"zones": {"../base": {"centre": 1.0}}},
    ],
    ids=["unlike lengths", "no choice", "negative", "bands missing", "a name that leads out"],
)
def test_a_damaged_row_of_the_journal_is_no_row(gap: dict[str, Any]) -> None:
    whole = json.loads(judged("a").to_json())
    assert Judged.from_dict(whole, "row").gap is not None
    with pytest.raises(QdmrError, match=r"^row: gap"):
        Judged.from_dict({**whole, "gap": {**whole["gap"], **gap}}, "row")


def test_results_from_before_there_was_a_gap_are_read_and_written_alike() -> None:
    text = Evaluation(images=0, input={}, stages={}, per_image=()).to_json()
    assert "gap" not in text
    assert Evaluation.parse(text, "old").gap is None
    assert Evaluation.parse(text, "old").to_json() == text
