"""Agreement with the authors' code, and that ``qdmr verify`` notices where there is none."""

from __future__ import annotations

import json
import math
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch

from qdmr_ray.cli import main as cli
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics.niqe import PristineFit, niqe
from qdmr_ray.evaluate.metrics.pristine import PristineModel, load_pristine, save_pristine
from qdmr_ray.nets import DiscriminatorSettings, UNetDiscriminator
from qdmr_ray.verify import folder as module
from qdmr_ray.verify import metrics as metrics_module
from qdmr_ray.verify.folder import (
    PRISTINE_PATH,
    Comparison,
    golden_batches,
    verify,
    verify_discriminators,
    verify_metrics,
    verify_networks,
    verify_niqe,
    verify_steps,
)
from qdmr_ray.verify.golden import Golden, golden_array, golden_state, load_golden

FOLDER = Path(__file__).parents[1] / "golden"
# NIQE's authors' parameters are not this project's to ship; where they are, they are used.
SHARED_PRISTINE = Path(__file__).parents[3] / "shared" / "data" / "niqe_pris_params.npz"
STAGES = ("vqgan", "qdmr_base", "qdmr_uda")
FILES = ("forward.npz", "metrics.json", "recipe.json", "state_dict_keys.json", "train_steps.json")
# A base stage's figures that one step settles: the loss terms, and the codebook that stays.
CODEBOOK = "net_g.quantize_group.0.embedding.weight"
LAST_BIAS = "net_g.cac_out_conv.bias"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden(FOLDER)


def differing(comparisons: list[Comparison]) -> list[str]:
    return [c.figure for c in comparisons if not c.agrees]


def figures(comparisons: list[Comparison]) -> set[str]:
    names = [c.figure for c in comparisons]
    assert len(names) == len(set(names))
    return set(names)


def arrays_of(golden: Golden, discriminators: bool) -> set[str]:
    return {name for name in golden.forward if ("_discriminator/" in name) == discriminators}


# -- the figures of the authors' code --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_networks_agree(golden: Golden, dtype: torch.dtype) -> None:
    comparisons = verify_networks(golden, dtype)
    assert figures(comparisons) == arrays_of(golden, discriminators=False)
    assert differing(comparisons) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_discriminators_agree(golden: Golden, dtype: torch.dtype) -> None:
    comparisons = verify_discriminators(golden, dtype)
    assert figures(comparisons) == arrays_of(golden, discriminators=True)
    assert differing(comparisons) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_three_training_steps_agree(golden: Golden, kind: str) -> None:
    comparisons = verify_steps(golden, kind, torch.float64)
    names = {*golden.steps[kind]["losses"][0], "params_after"}
    assert figures(comparisons) == {f"{kind} steps/{name}" for name in names}
    assert differing(comparisons) == []


def test_metrics_agree(golden: Golden) -> None:
    comparisons = verify_metrics(golden)
    # NIQE is a part of its own: what it is measured from may be missing.
    photographs = {
        f"{photograph}/{metric}"
        for photograph, values in golden.metrics.items()
        if isinstance(values, dict)
        for metric in values
        if not metric.startswith("niqe")
    }
    assert figures(comparisons) == {"lpips_vgg", *photographs}
    assert differing(comparisons) == []


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_outputs_are_compared_as_closely_as_the_readme_of_the_figures_says(
    golden: Golden, dtype: torch.dtype, allowed: float
) -> None:
    assert {c.allowed for c in verify_discriminators(golden, dtype)} == {allowed}


# -- a figure that is wrong ------------------------------------------------------------------


def with_forward(golden: Golden, **changes: np.ndarray) -> Golden:
    """``changes`` by the figure's name, with ``__`` for the stroke."""
    changed = {name.replace("__", "/"): value for name, value in changes.items()}
    assert changed.keys() <= set(golden.forward)
    return replace(golden, forward={**golden.forward, **changed})


def off_by(array: np.ndarray, share: float) -> np.ndarray:
    """One element moved by ``share`` of the largest one: what the comparison calls ``share``."""
    wrong = array.astype(np.float64)
    wrong.flat[wrong.size // 2] += share * np.abs(array).max()
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("share", [2e-6, 1.0, math.nan])
def test_a_wrong_output_is_reported(golden: Golden, share: float) -> None:
    right = golden.forward["image_discriminator/logits"]
    wrong = with_forward(golden, image_discriminator__logits=off_by(right, share))

    comparisons = verify_discriminators(wrong, torch.float64)

    assert differing(comparisons) == ["image_discriminator/logits"]
    # Adding all of the largest value may make a new largest one; within that, it is the share.
    found = comparisons[0].difference
    assert math.isnan(share) == math.isnan(found)
    assert math.isnan(share) or share / 2 <= found <= share * 1.01


@pytest.mark.slow
def test_wrong_losses_indices_and_images_of_networks_are_reported(golden: Golden) -> None:
    indices = golden.forward["s2t/indices"].copy()
    indices.flat[: indices.size // 50] += 1  # 2 % of them, where 0.5 % are allowed
    codes = golden.forward["vqgan/decoded_codes"]
    wrong = with_forward(
        golden,
        s2t__indices=indices,
        qdmr_uda__codebook_loss=golden.forward["qdmr_uda/codebook_loss"] * 1.002,
        vqgan__semantic_loss=golden.forward["vqgan/semantic_loss"] * math.nan,
        qdmr_base__wide_image=off_by(golden.forward["qdmr_base/wide_image"], 3e-4),
        vqgan__decoded_codes=off_by(codes, 3e-5),
    )

    found = differing(verify_networks(wrong, torch.float32))

    assert sorted(found) == [
        "qdmr_base/wide_image",
        "qdmr_uda/codebook_loss",
        "s2t/indices",
        "vqgan/decoded_codes",
        "vqgan/semantic_loss",
    ]


def one_base_step(
    golden: Golden, losses: dict[str, float], parameters: dict[str, list[float]]
) -> Golden:
    """The figures of the base stage's first iteration, with ``losses`` replaced."""
    first = {**golden.steps["qdmr_base"]["losses"][0], **losses}
    recipe = {**golden.recipe, "steps": {**golden.recipe["steps"], "count": 1}}
    steps = {"qdmr_base": {"losses": [first], "params_after": parameters}}
    return replace(golden, recipe=recipe, steps=steps)


@pytest.mark.slow
def test_a_wrong_loss_of_a_training_step_is_reported(golden: Golden) -> None:
    right, after = golden.steps["qdmr_base"]["losses"][0], golden.steps["qdmr_base"]["params_after"]
    wrong = one_base_step(golden, {"l_pix": right["l_pix"] * 1.002}, {CODEBOOK: after[CODEBOOK]})

    comparisons = verify_steps(wrong, "qdmr_base", torch.float32)

    # The frozen codebook alone is the same after one step as after three.
    assert differing(comparisons) == ["qdmr_base steps/l_pix"]


@pytest.mark.slow
def test_wrong_parameters_after_a_training_step_are_reported(golden: Golden) -> None:
    after = golden.steps["qdmr_base"]["params_after"]
    # The last bias, three numbers, is still two steps from where the figures have it.
    wrong = one_base_step(golden, {}, {key: after[key] for key in (CODEBOOK, LAST_BIAS)})

    comparisons = verify_steps(wrong, "qdmr_base", torch.float32)

    assert differing(comparisons) == ["qdmr_base steps/params_after"]


@pytest.mark.slow
def test_a_step_that_is_not_a_number_never_agrees(golden: Golden) -> None:
    after = golden.steps["qdmr_base"]["params_after"]
    parameters = {CODEBOOK: after[CODEBOOK], LAST_BIAS: [math.nan] * 4}
    wrong = one_base_step(golden, {"l_pix": math.nan}, parameters)

    found = differing(verify_steps(wrong, "qdmr_base", torch.float32))

    assert found == ["qdmr_base steps/l_pix", "qdmr_base steps/params_after"]


@pytest.mark.parametrize(
    ("difference", "agrees"), [(0.0, True), (0.1, True), (0.11, False), (math.nan, False)]
)
def test_a_comparison_agrees_up_to_what_is_allowed(difference: float, agrees: bool) -> None:
    assert Comparison("figure", difference, 0.1).agrees == agrees


def nothing(*_: object) -> list[Comparison]:
    return []


def test_wrong_metrics_are_reported(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "GOLDEN_PHOTOGRAPHS", ("chelsea",))
    right = golden.metrics["chelsea"]
    chelsea = {**right, "psnr": right["psnr"] * (1 + 3e-6), "ssim_crop4_y": math.nan}
    wrong = replace(golden, metrics={**golden.metrics, "chelsea": chelsea})

    assert differing(verify_metrics(wrong)) == ["chelsea/psnr", "chelsea/ssim_crop4_y"]


@pytest.mark.parametrize("factor", [1 + 3e-5, math.nan])
def test_one_wrong_lpips_distance_is_reported(
    golden: Golden, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "GOLDEN_PHOTOGRAPHS", ())
    first, second = golden.metrics["lpips_vgg"]
    wrong = replace(golden, metrics={"lpips_vgg": [first, second * factor]})

    assert differing(verify_metrics(wrong)) == ["lpips_vgg"]


@pytest.fixture(scope="module")
def own_pristine() -> PristineModel:
    """A model of two photographs: the one behind the golden figures is not this project's."""
    fit = PristineFit()
    for photograph in (skimage.data.hubble_deep_field(), skimage.data.immunohistochemistry()):
        fit.add(photograph)
    return fit.model()


def with_niqe(golden: Golden, model: PristineModel, **factors: float) -> Golden:
    """NIQE's figures as ``model`` gives them, those named multiplied."""
    chelsea = skimage.data.chelsea()
    wide = chelsea.astype(int)
    shifted = sum(np.roll(wide, shift, axis) for shift, axis in ((1, 0), (1, 1), (3, 1)))
    images = {"niqe": chelsea, "niqe_blurred": ((wide + shifted) // 4).astype(np.uint8)}
    figures = {key: niqe(image, model) * factors.get(key, 1.0) for key, image in images.items()}
    return replace(golden, metrics={"chelsea": figures})


def test_wrong_niqe_is_reported(
    golden: Golden, own_pristine: PristineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "GOLDEN_PHOTOGRAPHS", ("chelsea",))
    right = with_niqe(golden, own_pristine)
    both = ["chelsea/niqe", "chelsea/niqe_blurred"]

    assert figures(verify_niqe(right, own_pristine)) == set(both)
    assert differing(verify_niqe(right, own_pristine)) == []
    for factors, wrong in (
        ({"niqe": 1 + 3e-5, "niqe_blurred": 1 + 1e-3}, both[:1]),
        ({"niqe_blurred": 1 + 5e-3}, both[1:]),
        ({"niqe": math.nan, "niqe_blurred": math.nan}, both),
    ):
        spoilt = with_niqe(golden, own_pristine, **factors)
        assert differing(verify_niqe(spoilt, own_pristine)) == wrong


def test_niqe_agrees_where_the_pristine_parameters_are(golden: Golden) -> None:
    if not SHARED_PRISTINE.is_file():
        pytest.skip(f"there are no pristine parameters in {SHARED_PRISTINE}")

    comparisons = verify_niqe(golden, load_pristine(SHARED_PRISTINE))

    assert len(figures(comparisons)) == 6
    assert differing(comparisons) == []


def test_all_parts_are_compared(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    def naming(name: str) -> Callable[..., list[Comparison]]:
        def part(_: Golden, *arguments: Any) -> list[Comparison]:
            return [Comparison(" ".join([name, *map(str, arguments)]), 0.0, 0.0)]

        return part

    for name in ("networks", "discriminators", "steps", "metrics", "niqe"):
        monkeypatch.setattr(module, f"verify_{name}", naming(name))
    told: list[str] = []
    without_niqe = {
        "networks torch.float32",
        "discriminators torch.float32",
        *(f"steps {kind} torch.float32" for kind in STAGES),
        "metrics",
    }
    model: Any = "model"

    assert figures(verify(golden, torch.float32, told.append)) == without_niqe
    assert len(told) == 6
    assert figures(verify(golden, torch.float32, pristine=model)) == {*without_niqe, "niqe model"}


# -- the recipe behind the figures -----------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "shape", "rule"),
    [
        ("conv1.weight_u", (7,), "unit"),
        ("conv1.weight_v", (12,), "unit"),
        ("conv1.weight_orig", (7, 3, 2, 2), "fan in"),
        ("cac_out_conv.bias", (3,), "small"),
        ("blocks.0.attn.relative_position_bias_table", (9, 2), "small"),
        ("embedding.bias", (5,), "small"),
        ("swin_blks.0.norm1.weight", (6,), "around one"),
        ("embedding.weight", (6,), "around one"),
        ("quantize_group.0.embedding.weight", (6, 4), "half"),
        ("blocks.0.attn.qkv.weight", (6, 4), "fan in"),
        ("before_quant_group.0.weight", (2, 4, 1, 1), "fan in"),
    ],
)
def test_the_first_rule_that_matches_a_key_holds(
    key: str, shape: tuple[int, ...], rule: str
) -> None:
    a = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    wanted = {
        "unit": a / np.sqrt((a**2).sum()),
        "small": 0.02 * a,
        "around one": 1 + 0.1 * a,
        "half": a / 2,
        "fan in": a / math.sqrt(a[0].size),
    }[rule]

    found = golden_array(key, shape)

    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_constants_are_not_filled(golden: Golden) -> None:
    for kind in golden.keys:
        state = golden_state(golden, kind)
        assert state
        assert not [key for key in state if key.endswith(("mask", "mean", "std", "index"))]


def other_recipe(golden: Golden) -> Golden:
    recipe = {
        "seed": 7,
        "forward": {"batch": 3, "size": 32, "stored": 2, "feature_channels": 256}
        | {"feature_size": 8},
        "steps": {"batch": 1, "size": 16, "count": 2},
    }
    return replace(golden, recipe=recipe)


def test_batches_of_another_recipe(golden: Golden) -> None:
    batches = list(golden_batches(other_recipe(golden), "vqgan", torch.float64))

    assert len(batches) == 2
    for i, batch in enumerate(batches, start=1):
        seeds = {"ground_truth": 7 + 10 * i, "source": 8 + 10 * i, "target": 9 + 10 * i}
        assert batch.keys() == seeds.keys()
        for name, seed in seeds.items():
            wanted = np.random.default_rng(seed).random((1, 3, 16, 16))
            np.testing.assert_array_equal(batch[name].numpy(), wanted)


def test_figures_of_another_recipe_are_compared_too(golden: Golden) -> None:
    other = other_recipe(golden)
    inputs = {
        "image": np.random.default_rng(7).random((3, 3, 32, 32)),
        "feature": np.random.default_rng(7).standard_normal((3, 256, 8, 8)),
    }
    logits = {}
    for name, x in inputs.items():
        network = UNetDiscriminator(x.shape[1], DiscriminatorSettings()).double()
        network.load_state_dict(golden_state(golden, f"{name}_discriminator"))
        with torch.no_grad():
            logits[f"{name}_discriminator/logits"] = network(torch.from_numpy(x))[:2].numpy()

    comparisons = verify_discriminators(replace(other, forward=logits), torch.float64)
    assert figures(comparisons) == logits.keys()
    assert differing(comparisons) == []


# -- the command -----------------------------------------------------------------------------


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A copy of the figures that a test may spoil."""
    folder = tmp_path / "figures"
    shutil.copytree(FOLDER, folder)
    return folder


@pytest.fixture
def only_discriminators(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command compares the quickest part alone; the other parts have tests of their own."""
    for name in ("networks", "steps", "metrics"):
        monkeypatch.setattr(module, f"verify_{name}", nothing)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["qdmr", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


@pytest.mark.usefixtures("only_discriminators")
def test_command_says_that_all_agree(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = own_folder / "table.json"

    assert run(monkeypatch, own_folder, "--json", table) == 0

    out, err = capsys.readouterr()
    assert "all 2 figures agree in float64" in out
    assert "DIFFERS" not in out
    assert err == ""
    rows = json.loads(table.read_text())
    assert {row["figure"] for row in rows} == {
        "image_discriminator/logits",
        "feature_discriminator/logits",
    }
    assert all(row["agrees"] is True and row["difference"] <= row["allowed"] for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("only_discriminators")
def test_command_compares_niqe_where_its_parameters_lie_beside_the_figures(
    own_folder: Path,
    own_pristine: PristineModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compare(_: Golden, model: PristineModel) -> list[Comparison]:
        agrees = np.array_equal(model.mean, own_pristine.mean)
        return [Comparison("NIQE's turn", 0.0 if agrees else 1.0, 0.0)]

    monkeypatch.setattr(module, "verify_niqe", compare)
    file = (own_folder / PRISTINE_PATH).resolve()

    assert run(monkeypatch, own_folder) == 0
    out = capsys.readouterr().out
    assert f"leaving out NIQE: it is measured from pristine parameters, and there is no {file}" in (
        " ".join(out.split())
    )
    assert "NIQE's turn" not in out

    file.parent.mkdir()
    save_pristine(file, own_pristine)
    assert run(monkeypatch, own_folder) == 0
    out = capsys.readouterr().out
    assert "leaving out" not in out
    assert "all 3 figures agree" in out

    file.write_bytes(b"PK")
    assert run(monkeypatch, own_folder) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(file) in lines[0]


@pytest.mark.usefixtures("only_discriminators")
def test_command_fails_where_a_figure_differs(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(own_folder / "forward.npz") as arrays:
        forward = dict(arrays)
    forward["feature_discriminator/logits"] = off_by(forward["feature_discriminator/logits"], 1e-3)
    np.savez(own_folder / "forward.npz", **forward)
    table = own_folder / "table.json"

    assert run(monkeypatch, own_folder, "--dtype", "float32", "--json", table) == 1

    out, err = capsys.readouterr()
    marked = [line for line in out.splitlines() if "DIFFERS" in line]
    assert [("feature_discriminator/logits" in line) for line in marked] == [True]
    assert err.splitlines() == [f"qdmr: {own_folder}: 1 of 2 figures differ too much"]
    rows = {row["figure"]: row["agrees"] for row in json.loads(table.read_text())}
    assert rows == {"image_discriminator/logits": True, "feature_discriminator/logits": False}


def test_command_refuses_an_unknown_dtype(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, FOLDER, "--dtype", "float16") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "float16" in lines[0]
    assert "float64" in lines[0]


def test_command_needs_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "nowhere") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(tmp_path / "nowhere") in lines[0]
    assert "recipe.json" in lines[0]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kept", [None, 0.0, 0.5], ids=["missing", "empty", "truncated"])
def test_a_missing_or_broken_file_is_one_line_with_the_folder(
    own_folder: Path, file: str, kept: float | None
) -> None:
    path = own_folder / file
    content = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(content[: int(len(content) * kept)])

    with pytest.raises(QdmrError) as error:
        load_golden(own_folder)
    assert str(own_folder) in str(error.value)
    assert "\n" not in str(error.value)
