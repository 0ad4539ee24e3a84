"""What a step logs, trains and leaves alone, for every stage at toy size."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stages import (
    CROP,
    DISCRIMINATOR,
    PLAIN_AND_GUIDED,
    SETTINGS,
    SMALL,
    batch_of,
    tiny_stage,
    trained_vqgan,
)
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.nets.quantizer import VectorQuantizer
from qdmr_ray.stages import (
    STAGES,
    Components,
    OptimizerSettings,
    SourceOnlySettings,
    StageSettings,
    VQGANSettings,
    build_stage,
)

CODEBOOK_FIGURES = ("perplexity", "used")


def discriminator_names(network: str, *images: str) -> set[str]:
    return {f"{network}_discriminator/{i}{end}" for i in images for end in ("", "_logit")}


def codebook_names(*domains: str) -> set[str]:
    return {f"codebook/{domain}/{figure}" for domain in domains for figure in CODEBOOK_FIGURES}


# The terms that the generator's optimizer minimises, and what else is logged.
GENERATOR_TERMS = {
    "vqgan": {
        *("source/l1", "source/lpips", "source/codebook", "source/semantic", "source/gan"),
        *("target/l1", "target/lpips", "target/codebook", "target/semantic"),
    },
    "source_only": {"source/l1", "source/lpips", "source/gan"},
    "base": {"source/l1", "source/lpips", "source/gan", "source/codebook"},
    "uda": {
        *("source/l1", "source/lpips", "source/gan", "source/codebook", "source/feature"),
        *("s2t/l1", "s2t/lpips", "s2t/gan", "s2t/codebook"),
        *("target/codebook", "target/feature"),
    },
}
OTHER_NAMES = {
    "vqgan": discriminator_names("image", "target", "source") | codebook_names("source", "target"),
    "source_only": discriminator_names("image", "ground_truth", "source"),
    "base": discriminator_names("image", "ground_truth", "source") | codebook_names("source"),
    "uda": discriminator_names("image", "ground_truth", "source", "s2t")
    | discriminator_names("feature", "target", "source")
    | codebook_names("source", "s2t", "target"),
}

stages = pytest.mark.parametrize("name", list(STAGES))


def objective(name: str, logged: dict[str, Tensor]) -> float:
    """The sum that the generator's optimizer minimises."""
    return sum(logged[term].item() for term in logged if term in GENERATOR_TERMS[name])


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {key for key, now in module.state_dict().items() if not torch.equal(before[key], now)}


@stages
def test_every_loss_is_logged_under_its_name(name: str) -> None:
    logged = tiny_stage(name, SETTINGS[name]).step(batch_of(name, 2))
    assert set(logged) == GENERATOR_TERMS[name] | OTHER_NAMES[name]
    for term, value in logged.items():
        assert value.shape == (), term
        assert torch.isfinite(value), term
        assert not value.requires_grad, term


@stages
def test_a_generator_learns_one_batch(name: str) -> None:
    settings = replace(SETTINGS[name], optimizer=OptimizerSettings(generator_lr=1e-3))
    stage, batch = tiny_stage(name, settings), batch_of(name, 2)
    sums = [objective(name, stage.step(batch)) for _ in range(12)]
    assert sums[-1] < 0.95 * sums[0]
    assert stage.iteration == 12


@pytest.mark.parametrize("name", ["base", "uda"])
def test_codebook_and_vqgan_stay_as_they_were_trained(name: str) -> None:
    stage = tiny_stage(name, SETTINGS[name])
    network, vqgan = stage.network, trained_vqgan()
    for taken in ("quantizer", "before_quant", "after_quant"):
        assert changed(snapshot(getattr(vqgan, taken)), getattr(network, taken)) == set()
    before = snapshot(network)
    for i in range(3):
        stage.step(batch_of(name, 2, seed=i))
    trained = changed(before, network)
    assert "quantizer.codes" not in trained
    # Everything else trains, the layers around the codebook too.
    assert trained == set(before) - {"quantizer.codes"}
    if name == "uda":
        assert changed(snapshot(vqgan), stage.vqgan) == set()
        assert not any(p.requires_grad for p in stage.vqgan.parameters())


GUIDED = {"base": {"source"}, "uda": {"source", "s2t", "target"}}
guided = pytest.mark.parametrize("name", GUIDED)


@guided
def test_guidance_pulls_each_input_to_the_codes_that_the_vqgan_chooses_for_it(name: str) -> None:
    """By the factor of the input's codebook loss, beside which it is a term of its own."""
    factors: dict[str, Any] = {"codebook": 0.5}
    if name == "uda":
        factors |= {"s2t_codebook": 2.0, "target_codebook": 0.25}
    off = replace(SETTINGS[name], **factors)
    stage = tiny_stage(name, replace(off, code_guidance=3.0), dtype=torch.float64)
    vqgan, network, batch = trained_vqgan().double(), stage.network, batch_of(name, 2)
    batch = {domain: images.double() for domain, images in batch.items()}
    with torch.no_grad():
        inputs = batch | {"s2t": vqgan(batch["source"]).image}
        expected = {}
        for domain in GUIDED[name]:
            codes = vqgan.quantizer(vqgan.before_quant(vqgan.encoder(inputs[domain])))[1]
            z = network.before_quant(network.encoder(inputs[domain]))
            factor = off.codebook if domain == "source" else factors[f"{domain}_codebook"]
            loss = network.quantizer.guidance(z, codes).mean()
            expected[f"{domain}/code_guidance"] = 3 * factor * loss

    logged = stage.step(batch)
    usual = tiny_stage(name, off, dtype=torch.float64).step(batch)

    assert set(logged) - set(usual) == set(expected)
    for term, value in expected.items():
        assert value > 0
        torch.testing.assert_close(logged[term], value, rtol=1e-10, atol=0)
    # The other terms of the first step are the same; the discriminators see the same images.
    assert {term: logged[term] for term in usual} == usual


@guided
def test_guidance_trains_the_encoder_and_not_the_vqgan(name: str) -> None:
    settings = replace(SETTINGS[name], code_guidance=1.0)
    stage, vqgan = tiny_stage(name, settings), trained_vqgan()
    out = stage.generator(batch_of(name, 2))
    torch.stack([out.terms[f"{domain}/code_guidance"] for domain in GUIDED[name]]).sum().backward()
    reached = {k.split(".")[0] for k, p in stage.network.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "before_quant"}
    assert all(p.grad is None for p in stage.auxiliary.parameters())

    stage.step(batch_of(name, 2))

    assert changed(snapshot(vqgan), stage.vqgan) == set()
    assert changed(snapshot(vqgan.quantizer), stage.network.quantizer) == set()
    # It is no part of a checkpoint.
    saved, usual = (s.state_dict() for s in (stage, tiny_stage(name, SETTINGS[name])))
    assert saved.keys() == usual.keys()
    assert saved["generator"].keys() == usual["generator"].keys()


def test_guided_features_come_to_the_wanted_codes() -> None:
    name, batch = "base", batch_of("base", 2)

    def agreement(weight: float) -> float:
        rates = OptimizerSettings(generator_lr=1e-2)
        settings = replace(SETTINGS[name], code_guidance=weight, optimizer=rates, gan=0.0)
        stage, vqgan = tiny_stage(name, settings), trained_vqgan()
        for _ in range(25):
            stage.step(batch)
        with torch.no_grad():
            indices = stage.network.encode(batch["source"]).indices
        return float((indices == vqgan.encode_indices(batch["source"])).float().mean())

    assert agreement(4.0) > 0.5 > agreement(0.0)


@stages
def test_the_two_steps_leave_each_others_gradients_alone(name: str) -> None:
    stage = tiny_stage(name, SETTINGS[name])
    seen_at_discriminator_step: list[dict[str, Any]] = []

    def watch(judges: nn.Module, args: Any) -> None:
        seen_at_discriminator_step.append(
            {
                "untouched": all(p.grad is None for p in judges.parameters()),
                "trainable": all(p.requires_grad for p in judges.parameters()),
                "detached": not any(t.requires_grad for t in args[0].values()),
                "generator": [
                    None if p.grad is None else p.grad.clone() for p in stage.generator.parameters()
                ],
            }
        )

    stage.discriminators.register_forward_pre_hook(watch)
    before = snapshot(stage.discriminators)
    stage.step(batch_of(name, 2))
    (seen,) = seen_at_discriminator_step
    assert seen["untouched"], "the generator step gave the discriminators gradients"
    assert seen["trainable"]
    assert seen["detached"]
    after = [p.grad for p in stage.generator.parameters()]
    for gradient, later in zip(seen["generator"], after, strict=True):
        assert gradient is None or torch.equal(gradient, later)
    # The discriminator step itself does train them.
    assert {key for key in before if key.endswith("weight")} <= changed(
        before, stage.discriminators
    )


@stages
def test_a_weight_of_zero_leaves_the_term_and_its_network_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing may look for VGG weights that are not needed.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    off = {
        key: 0.0 for key in ("gan", "feature_gan", "lpips", "semantic") if _has(SETTINGS[name], key)
    }
    components = Components(
        network=SMALL, discriminator=DISCRIMINATOR, trained={"vqgan": trained_vqgan()}
    )
    stage = build_stage(name, replace(SETTINGS[name], **off), components).to("cpu")
    logged = stage.step(batch_of(name, 2))
    gone = ("/gan", "/feature", "/lpips", "/semantic")
    wanted = {term for term in GENERATOR_TERMS[name] if not term.endswith(gone)}
    figures = {figure for figure in OTHER_NAMES[name] if figure.startswith("codebook/")}
    assert set(logged) == wanted | figures
    assert not stage.has_discriminators
    assert list(stage.discriminators.parameters()) == []
    assert list(stage.generator.networks) == ["network"]
    # The frozen VQGAN of the UDA stage is the only helper left.
    assert [type(m).__name__ for m in stage.auxiliary] == (["VQGAN"] if name == "uda" else [])
    assert set(stage.state_dict()) == {"iteration", "generator", "generator_optimizer"}


@pytest.mark.parametrize(("weight", "left"), [("gan", {"feature"}), ("feature_gan", {"image"})])
def test_each_discriminator_of_uda_is_left_out_alone(weight: str, left: set[str]) -> None:
    stage = tiny_stage("uda", replace(SETTINGS["uda"], **{weight: 0.0}))
    logged = stage.step(batch_of("uda", 2))
    assert set(stage.discriminators.networks) == left
    assert {n.split("_discriminator")[0] for n in logged if "_discriminator" in n} == left


def _has(settings: StageSettings, name: str) -> bool:
    return hasattr(settings, name)


WEIGHTS = [
    ("vqgan", "l1", {"source/l1", "target/l1"}),
    ("vqgan", "lpips", {"source/lpips", "target/lpips"}),
    ("vqgan", "codebook", {"source/codebook", "target/codebook"}),
    ("vqgan", "semantic", {"source/semantic", "target/semantic"}),
    ("vqgan", "gan", {"source/gan"}),
    ("source_only", "l1", {"source/l1"}),
    ("source_only", "lpips", {"source/lpips"}),
    ("source_only", "gan", {"source/gan"}),
    ("base", "codebook", {"source/codebook"}),
    ("uda", "l1", {"source/l1", "s2t/l1"}),
    ("uda", "lpips", {"source/lpips", "s2t/lpips"}),
    ("uda", "gan", {"source/gan", "s2t/gan"}),
    ("uda", "codebook", {"source/codebook"}),
    ("uda", "s2t_codebook", {"s2t/codebook"}),
    ("uda", "target_codebook", {"target/codebook"}),
    ("uda", "feature_gan", {"source/feature", "target/feature"}),
    ("uda", "target_feature", {"target/feature"}),
]


@pytest.fixture(scope="module")
def first_losses() -> Callable[..., dict[str, Tensor]]:
    """The first iteration's losses with some settings replaced; those as they are, once only."""
    usual: dict[str, dict[str, Tensor]] = {}

    def losses(name: str, **replaced: float) -> dict[str, Tensor]:
        if replaced or name not in usual:
            found = tiny_stage(name, replace(SETTINGS[name], **replaced)).step(batch_of(name, 2))
            if replaced:
                return found
            usual[name] = found
        return usual[name]

    return losses


@pytest.mark.parametrize(("name", "weight", "terms"), WEIGHTS)
def test_a_weight_scales_its_terms_and_no_other(
    name: str, weight: str, terms: set[str], first_losses: Callable[..., dict[str, Tensor]]
) -> None:
    factor = 2.0  # Exact in binary, so nothing is rounded differently.
    usual = first_losses(name)
    more = first_losses(name, **{weight: factor * getattr(SETTINGS[name], weight)})
    # The discriminator step comes after the generator has moved.
    for term in GENERATOR_TERMS[name]:
        expected = usual[term] * factor if term in terms else usual[term]
        torch.testing.assert_close(more[term], expected, rtol=1e-6, atol=0)
        assert usual[term] != 0, term


def test_discriminator_terms_always_weigh_one(
    first_losses: Callable[..., dict[str, Tensor]],
) -> None:
    """A term with the weight w in the objective has w times its gradient: at 1, hinge's terms are
    those of the logits beside them."""
    logged = first_losses("base")
    real = logged["image_discriminator/ground_truth_logit"]
    fake = logged["image_discriminator/source_logit"]
    # Fresh logits lie well inside (-1, 1), where hinge is linear.
    assert max(abs(real), abs(fake)) < 0.9
    torch.testing.assert_close(logged["image_discriminator/ground_truth"], 1 - real)
    torch.testing.assert_close(logged["image_discriminator/source"], 1 + fake)


@pytest.mark.parametrize(("name", "changes"), PLAIN_AND_GUIDED)
def test_a_loaded_state_goes_on_bit_for_bit(name: str, changes: dict[str, float]) -> None:
    settings = replace(SETTINGS[name], optimizer=OptimizerSettings(milestones=(2,)), **changes)
    batches = [batch_of(name, 2, seed=i) for i in range(4)]
    undisturbed = tiny_stage(name, settings)
    for batch in batches[:2]:
        undisturbed.step(batch)
    file = io.BytesIO()
    torch.save(undisturbed.state_dict(), file)
    file.seek(0)
    # Other initial weights: all that counts must come from the state.
    resumed = tiny_stage(name, settings, seed=1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.iteration == 2
    for batch in batches[2:]:
        expected, found = undisturbed.step(batch), resumed.step(batch)
        assert expected.keys() == found.keys()
        for term in expected:
            assert torch.equal(expected[term], found[term]), term
    assert changed(snapshot(undisturbed.generator), resumed.generator) == set()
    assert changed(snapshot(undisturbed.discriminators), resumed.discriminators) == set()


def test_a_state_of_another_network_is_refused() -> None:
    stage = tiny_stage("base", SETTINGS["base"])
    wider = tiny_stage("source_only", SETTINGS["source_only"])
    with pytest.raises((RuntimeError, ValueError)):
        stage.load_state_dict(wider.state_dict())


@stages
def test_a_milestone_takes_effect_from_the_iteration_after_it(name: str) -> None:
    optimizer = OptimizerSettings(
        generator_lr=1e-3, discriminator_lr=4e-3, milestones=(2, 3), gamma=0.5
    )
    settings = replace(SETTINGS[name], optimizer=optimizer, lpips=0.0)
    stage, batch = tiny_stage(name, settings), batch_of(name, 1)
    used: dict[str, list[float]] = {"generator": [], "discriminator": []}
    for label, adam in (
        ("generator", stage.generator_optimizer),
        ("discriminator", stage.discriminator_optimizer),
    ):
        adam.register_step_pre_hook(
            lambda adam, *_, label=label: used[label].append(adam.param_groups[0]["lr"])
        )
    for _ in range(4):
        stage.step(batch)
    assert used["generator"] == [1e-3, 1e-3, 5e-4, 2.5e-4]
    assert used["discriminator"] == [4e-3, 4e-3, 2e-3, 1e-3]


@stages
def test_adam_has_the_settings_values_and_every_trained_weight(name: str) -> None:
    optimizer = OptimizerSettings(betas=(0.8, 0.95), eps=1e-7)
    stage = tiny_stage(name, replace(SETTINGS[name], optimizer=optimizer))
    for adam, objective_ in (
        (stage.generator_optimizer, stage.generator),
        (stage.discriminator_optimizer, stage.discriminators),
    ):
        (group,) = adam.param_groups
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-7, 0)
        trainable = [p for p in objective_.parameters() if p.requires_grad]
        assert {id(p) for p in group["params"]} == {id(p) for p in trainable}


def test_uda_decodes_no_target_images() -> None:
    stage = tiny_stage("uda", SETTINGS["uda"])
    counts: dict[str, list[int]] = {"encoder": [], "decoder": []}
    for part, seen in counts.items():
        getattr(stage.network, part).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(len(args[0]))
        )
    stage.step(batch_of("uda", 2))
    # Three domains of two images go in; source and s2t come out.
    assert sum(counts["encoder"]) == 6
    assert sum(counts["decoder"]) == 4


def test_uda_without_s2t_sees_source_and_target_only() -> None:
    stage = tiny_stage("uda", replace(SETTINGS["uda"], s2t=False))
    batch = batch_of("uda", 2)
    inputs: list[Tensor] = []
    stage.network.encoder.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    logged = stage.step(batch)
    assert torch.equal(torch.cat(inputs), torch.cat([batch["source"], batch["target"]]))
    domains = {name.split("/")[0] for name in logged if not name.startswith("image_disc")}
    assert "s2t" not in domains
    assert {"source", "target"} <= domains
    assert not any("s2t" in name for name in logged)


def test_s2t_images_are_the_vqgans_unclamped_reconstruction() -> None:
    stage = tiny_stage("uda", SETTINGS["uda"])
    with torch.no_grad():
        stage.vqgan.decoder.last.weight.mul_(20)
    source = batch_of("uda", 2)["source"]
    s2t, indices = stage.vqgan.translate(source)
    assert not s2t.requires_grad
    assert s2t.min() < 0 or s2t.max() > 1
    expected = stage.vqgan(source)
    assert torch.equal(s2t, expected.image)
    assert torch.equal(indices, expected.indices)


def test_the_frozen_vqgan_sees_each_image_once_and_computes_no_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = tiny_stage("uda", replace(SETTINGS["uda"], code_guidance=1.0))
    quantize = VectorQuantizer.forward
    quantizers: list[nn.Module] = []

    def forward(self: VectorQuantizer, z: Tensor) -> Any:
        quantizers.append(self)
        return quantize(self, z)

    monkeypatch.setattr(VectorQuantizer, "forward", forward)
    seen: list[Tensor] = []
    stage.vqgan.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = batch_of("uda", 2)
    stage.step(batch)
    assert quantizers == [stage.network.quantizer]
    s2t = stage.vqgan.translate(batch["source"])[0]
    wanted = [batch["source"], torch.cat([s2t, batch["target"]])]
    assert all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=False))
    assert len(seen) == len(wanted) + 1


@stages
def test_lpips_sees_all_truths_at_once_and_all_outputs_at_once(name: str) -> None:
    stage, batch = tiny_stage(name, SETTINGS[name]), batch_of(name, 2)
    lpips = stage.lpips
    assert lpips is not None
    images: list[Tensor] = []
    lpips.features.register_forward_pre_hook(lambda _, args: images.append(args[0]))
    out = stage.generator(batch)
    truths, outputs = images
    domains = {"vqgan": ["source", "target"]}.get(name, ["ground_truth"])
    assert torch.equal(truths, torch.cat([batch[domain] for domain in domains]))
    assert (truths.requires_grad, outputs.requires_grad) == (False, True)
    restored = [key.split("/")[0] for key in out.terms if key.endswith("/lpips")]
    for i, (domain, output) in enumerate(zip(restored, outputs.split(2), strict=True)):
        truth = batch[domains[i % len(domains)]]
        expected = lpips(output, truth).mean()
        torch.testing.assert_close(out.terms[f"{domain}/lpips"], expected)


PICTURES = {
    "vqgan": {"source", "s2t", "target", "target_reconstruction", "codebook_atlas"},
    "source_only": {"source", "source_output", "ground_truth"},
    "base": {"source", "source_output", "ground_truth"},
    "uda": {
        *("source", "source_output", "s2t", "s2t_output", "ground_truth"),
        *("target", "target_output"),
    },
}


@stages
def test_pictures_show_every_image_and_change_nothing(name: str) -> None:
    stage, batch = tiny_stage(name, SETTINGS[name]), batch_of(name, 2)
    generator, discriminators = snapshot(stage.generator), snapshot(stage.discriminators)
    pictures = stage.pictures(batch)
    assert set(pictures) == PICTURES[name]
    atlas = pictures.pop("codebook_atlas", None)
    for caption, images in pictures.items():
        assert images.shape == (2, 3, CROP, CROP), caption
        assert not images.requires_grad, caption
    if atlas is not None:
        # A picture of 2 x 2 codes for each code, at the features' scale of 1/8.
        assert atlas.shape == (stage.network.settings.codebook_size, 3, 16, 16)
    assert changed(generator, stage.generator) == set()
    assert changed(discriminators, stage.discriminators) == set()


def refused(name: str, settings: StageSettings, components: Components) -> str:
    with pytest.raises(QdmrError) as caught:
        build_stage(name, settings, components)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("given", [False, True])
def test_missing_vgg_weights_say_how_to_get_them(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    deep = replace(SMALL, widths=(8, 8, 8, 16))
    path = str(tmp_path / "mine.pth")
    named = {"vgg16": path, "vgg19": path} if given else {}
    components = Components(network=deep, backbones=replace(Components().backbones, **named))
    vgg16 = refused("source_only", SourceOnlySettings(), components)
    for part in ("vgg16-397923af.pth", "weights.vgg16", "torchvision.models.vgg16"):
        assert part in vgg16
    vgg19 = refused("vqgan", VQGANSettings(lpips=0), components)
    for part in (
        "vgg19-dcbb9e9d.pth",
        "weights.vgg19",
        "torchvision.models.vgg19",
        "stages.vqgan.semantic=0",
    ):
        assert part in vgg19
    for message in (vgg16, vgg19):
        assert (path if given else str(tmp_path / "hub")) in message


@pytest.mark.parametrize("widths", [(8, 16), (8, 8, 16), (8, 8, 8, 8, 16)])
def test_the_semantic_term_needs_features_at_one_eighth(widths: tuple[int, ...]) -> None:
    components = Components(network=replace(SMALL, widths=widths), discriminator=DISCRIMINATOR)
    with pytest.raises(SettingsError, match=r"stages\.vqgan\.semantic=0") as caught:
        build_stage("vqgan", VQGANSettings(lpips=0), components)
    assert f"there are {len(widths)}" in str(caught.value)
    assert "\n" not in str(caught.value)
