"""Compares this package's networks, training steps and metrics with golden values.

    qdmr verify ../shared/golden

The difference of an output is its largest absolute difference over the largest absolute golden
value, that of a scalar its relative difference, that of code indices the share that differs.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdmr_ray.evaluate.metrics.pristine import PristineModel, load_pristine
from qdmr_ray.nets import (
    QDMR,
    VQGAN,
    DiscriminatorSettings,
    NetworkSettings,
    SemanticHead,
    UNetDiscriminator,
)
from qdmr_ray.nets.adapter import to_authors
from qdmr_ray.nets.vgg import VGG19Features
from qdmr_ray.stages import STAGES, Components, build_stage
from qdmr_ray.stages.stage import Stage
from qdmr_ray.storage import open_location
from qdmr_ray.verify.golden import (
    Comparison,
    Golden,
    golden_image,
    golden_state,
    load_golden,
    relative_difference,
    under,
    worst,
)
from qdmr_ray.verify.metrics import verify_metrics, verify_niqe

# Largest difference allowed by dtype: outputs, losses, share of differing indices, parameters.
TOLERANCES = {
    torch.float64: {"output": 1e-6, "loss": 1e-6, "indices": 0.0, "parameters": 1e-6},
    torch.float32: {"output": 1e-4, "loss": 1e-3, "indices": 0.005, "parameters": 1e-3},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
# The authors' code decoded the codes in float32.
OWN_TOLERANCES = {"vqgan/decoded_codes": 1e-5}
# Path of NIQE's pristine parameters, relative to the folder of the golden values.
PRISTINE_PATH = Path("..", "data", "niqe_pris_params.npz")


def verify(
    golden: Golden,
    dtype: torch.dtype,
    progress: Callable[[str], None] | None = None,
    *,
    pristine: PristineModel | None = None,
) -> list[Comparison]:
    """Runs every comparison; calls ``progress`` with the name of each group. NIQE needs
    ``pristine``, the model behind its golden values, and is left out without it."""
    parts: dict[str, Callable[[], list[Comparison]]] = {
        "networks": lambda: verify_networks(golden, dtype),
        "discriminators": lambda: verify_discriminators(golden, dtype),
        "vqgan steps": lambda: verify_steps(golden, "vqgan", dtype),
        "base steps": lambda: verify_steps(golden, "qdmr_base", dtype),
        "uda steps": lambda: verify_steps(golden, "qdmr_uda", dtype),
        "metrics": lambda: verify_metrics(golden),
    }
    if pristine is not None:
        parts["NIQE"] = lambda: verify_niqe(golden, pristine)
    comparisons: list[Comparison] = []
    for name, compare in parts.items():
        if progress:
            progress(name)
        comparisons += compare()
    return comparisons


def verify_folder(folder: Path, dtype: str, say: Callable[[str], None]) -> list[Comparison]:
    """Compares with the golden values in ``folder``; ``dtype`` is one of ``DTYPES``. NIQE is
    compared where its pristine parameters lie at ``PRISTINE_PATH``. Raises QdmrError where the
    folder holds no golden values, or the parameters are unreadable."""
    golden = load_golden(folder)
    path = (folder / PRISTINE_PATH).resolve()
    pristine = load_pristine(path) if path.is_file() else None
    if pristine is None:
        say(f"leaving out NIQE: it is measured from pristine parameters, and there is no {path}")
    return verify(golden, DTYPES[dtype], lambda part: say(f"comparing {part}"), pristine=pristine)


def write_comparisons(comparisons: Sequence[Comparison], path: Path) -> None:
    """Writes the comparisons as a JSON list of figure, difference, allowed and agrees."""
    rows = [{**asdict(comparison), "agrees": comparison.agrees} for comparison in comparisons]
    open_location(path).write_bytes_atomic(json.dumps(rows, indent=1).encode())


def verify_networks(golden: Golden, dtype: torch.dtype) -> list[Comparison]:
    """Compares the VQGAN, s2t and both QDMR networks in eval mode."""
    recipe, seed = golden.recipe["forward"], golden.recipe["seed"]
    x = golden_image(seed, recipe["batch"], recipe["size"], recipe["size"]).to(dtype)
    with torch.inference_mode():
        found = {**_vqgan_outputs(golden, x), **_qdmr_outputs(golden, x)}
    return [_forward_comparison(golden, name, value, dtype) for name, value in found.items()]


def verify_discriminators(golden: Golden, dtype: torch.dtype) -> list[Comparison]:
    """Compares both discriminators in training mode, after one power iteration."""
    recipe, seed = golden.recipe["forward"], golden.recipe["seed"]
    image = golden_image(seed, recipe["batch"], recipe["size"], recipe["size"])
    shape = (recipe["batch"], recipe["feature_channels"], *[recipe["feature_size"]] * 2)
    features = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
    comparisons = []
    for kind, x in (("image_discriminator", image), ("feature_discriminator", features)):
        network = UNetDiscriminator(x.shape[1], DiscriminatorSettings()).to(dtype)
        network.load_state_dict(golden_state(golden, kind))
        with torch.no_grad():
            logits = network(x.to(dtype))
        comparisons.append(_forward_comparison(golden, f"{kind}/logits", logits, dtype))
    return comparisons


def _vqgan_outputs(golden: Golden, x: Tensor) -> dict[str, Tensor]:
    """Returns outputs of the VQGAN, its semantic head, and the s2t network, a VQGAN alone."""
    state = golden_state(golden, "vqgan")
    network = VQGAN(NetworkSettings()).to(x.dtype).eval()
    head = SemanticHead(NetworkSettings().code_dim).to(x.dtype)
    vgg19 = VGG19Features().to(x.dtype)
    head.load_state_dict(under(state, "semantic."))
    vgg19.load_state_dict(under(state, "vgg."))
    found = {}
    for kind in ("s2t", "vqgan"):
        network.load_state_dict(_of_network(golden_state(golden, kind)))
        out = network(x)
        found[f"{kind}/image"], found[f"{kind}/indices"] = out.image, out.indices
        found[f"{kind}/codebook_loss"] = out.codebook_loss.mean()
    found["vqgan/after_quant"] = network.after_quant(out.code)[:, :8]
    found["vqgan/semantic_loss"] = (head(out.code) - vgg19(x)).square().mean()
    codes = torch.arange(len(golden.forward["vqgan/decoded_codes"]))
    found["vqgan/decoded_codes"] = network.float().decode_codes(codes)
    return found


def _qdmr_outputs(golden: Golden, x: Tensor) -> dict[str, Tensor]:
    """Returns outputs of Base and UDA, which share the network but not the weights' names."""
    found = {}
    wide = golden_image(golden.recipe["seed"], 1, 192, 320).to(x.dtype)
    for kind in ("qdmr_base", "qdmr_uda"):
        network = QDMR(NetworkSettings()).to(x.dtype).eval()
        network.load_state_dict(golden_state(golden, kind))
        out = network(x)
        found[f"{kind}/image"] = out.image
        found[f"{kind}/codebook_loss"] = out.codebook_loss.mean()
        if kind == "qdmr_base":
            found["qdmr_base/indices"] = out.indices
            found["qdmr_base/wide_image"] = network(wide).image[:, :, ::4, ::4]
    found["qdmr_uda/bottleneck"] = out.features[:, :8]
    return found


def _forward_comparison(golden: Golden, name: str, value: Tensor, dtype: torch.dtype) -> Comparison:
    """Compares a loss, code indices or an output, told apart by ``name``; golden files hold only
    the first images of a batch."""
    allowed, wanted = TOLERANCES[dtype], golden.forward[name]
    if name.endswith("_loss"):
        difference = relative_difference(value.item(), float(wanted))
        return Comparison(name, difference, allowed["loss"])
    found = value[: len(wanted)]
    if name.endswith("indices"):
        different = float((found.reshape(wanted.shape).numpy() != wanted).mean())
        return Comparison(name, different, allowed["indices"])
    difference = np.abs(found.double().numpy() - wanted.astype(np.float64)).max()
    relative = float(difference / np.abs(wanted).max())
    return Comparison(name, relative, OWN_TOLERANCES.get(name, allowed["output"]))


def _of_network(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the network's own entries, without those of the frozen networks beside it."""
    return {k: v for k, v in state.items() if not k.startswith(("semantic.", "vgg."))}


# The authors' names of logged losses, by ours; first the names that stages share.
_SHARED = {
    "source/codebook": "l_codebook",
    "source/l1": "l_pix",
    "image_discriminator/source": "l_d_fake",
    "image_discriminator/source_logit": "out_d_fake",
}
_GROUND_TRUTH = {
    "image_discriminator/ground_truth": "l_d_reals",
    "image_discriminator/ground_truth_logit": "out_d_reals",
}
STEP_NAMES = {
    "vqgan": {
        **_SHARED,
        "source/semantic": "l_semantic",
        "source/gan": "l_g_gan",
        "target/codebook": "l_codebookt",
        "target/semantic": "l_semantict",
        "target/l1": "l_pixt",
        "image_discriminator/target": "l_d_real",
        "image_discriminator/target_logit": "out_d_real",
    },
    "qdmr_base": {**_SHARED, **_GROUND_TRUTH, "source/gan": "l_g_gan"},
    "qdmr_uda": {
        **_SHARED,
        **_GROUND_TRUTH,
        "s2t/codebook": "l_codebook_s2t",
        "target/codebook": "tl_codebook",
        "s2t/l1": "l_pix_s2t",
        "source/feature": "l_g_gan_srcfuse",
        "target/feature": "l_g_gan_trgfuse",
        "source/gan": "l_g_gans",
        "s2t/gan": "l_g_ganst",
        "feature_discriminator/target": "l_d_trgreal",
        "feature_discriminator/target_logit": "out_d_trgreal",
        "feature_discriminator/source": "l_d_srcfake",
        "feature_discriminator/source_logit": "out_d_srcfake",
        "image_discriminator/s2t": "l_d_fakest",
        "image_discriminator/s2t_logit": "out_d_fakest",
    },
}


def verify_steps(golden: Golden, kind: str, dtype: torch.dtype) -> list[Comparison]:
    """Compares every loss of a stage's training iterations, then every parameter after them."""
    names, wanted, allowed = STEP_NAMES[kind], golden.steps[kind], TOLERANCES[dtype]
    stage = golden_stage(golden, kind, dtype)
    largest = dict.fromkeys(names.values(), 0.0)
    for losses, batch in zip(wanted["losses"], golden_batches(golden, kind, dtype), strict=True):
        found = stage.step(batch)
        for ours, theirs in names.items():
            difference = relative_difference(found[ours].item(), losses[theirs])
            largest[theirs] = worst((largest[theirs], difference))
    comparisons = [Comparison(f"{kind} steps/{k}", v, allowed["loss"]) for k, v in largest.items()]
    found = _authors_parameters(stage, kind)
    after = wanted["params_after"].items()
    difference = worst(_parameter_difference(found[key], values) for key, values in after)
    name = f"{kind} steps/params_after"
    return [*comparisons, Comparison(name, difference, allowed["parameters"])]


def golden_stage(golden: Golden, kind: str, dtype: torch.dtype) -> Stage:
    """Builds the stage of ``kind``, its networks filled by the recipe, ready for its first step."""
    vqgan = VQGAN(NetworkSettings()).to(dtype)
    vqgan.load_state_dict(golden_state(golden, "s2t"))
    components = _GoldenComponents(trained={"vqgan": vqgan})
    name = kind.removeprefix("qdmr_")
    settings: Any = STAGES[name].settings_type
    stage = build_stage(name, settings(lpips=0), components)
    stage.to("cpu", dtype)
    state = golden_state(golden, kind)
    stage.network.load_state_dict(_of_network(state))
    for frozen, prefix in (("semantic", "semantic."), ("vgg19", "vgg.")):
        if getattr(stage, frozen, None) is not None:
            getattr(stage, frozen).load_state_dict(under(state, prefix))
    for name, network in stage.discriminators.networks.items():
        network.load_state_dict(golden_state(golden, f"{name}_discriminator"))
    return stage


class _GoldenComponents(Components):
    """Components whose VGG19 needs no file, because the recipe fills it."""

    def vgg19(self) -> VGG19Features:
        return VGG19Features()


def golden_batches(golden: Golden, kind: str, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Yields the batches of the golden iterations."""
    recipe, seed = golden.recipe["steps"], golden.recipe["seed"]
    shape = recipe["batch"], recipe["size"], recipe["size"]
    for i in range(1, recipe["count"] + 1):
        images = (golden_image(seed + 10 * i + k, *shape).to(dtype) for k in range(3))
        yield dict(zip(("ground_truth", "source", "target"), images, strict=True))


def _authors_parameters(stage: Stage, kind: str) -> dict[str, Tensor]:
    """Returns the stage's state-dict entries under the authors' names."""
    generator = dict(stage.network.state_dict())
    semantic = getattr(stage, "semantic", None)
    if semantic is not None:
        generator |= {f"semantic.{key}": value for key, value in semantic.state_dict().items()}
    named = {"net_g": to_authors(kind, generator)}
    # The authors' net_d is the feature discriminator in UDA, the image discriminator elsewhere.
    prefixes = {"feature": "net_d", "image": "net_dt"} if kind == "qdmr_uda" else {"image": "net_d"}
    for name, prefix in prefixes.items():
        network: nn.Module = stage.discriminators.networks[name]
        named[prefix] = to_authors(f"{name}_discriminator", network.state_dict())
    return {f"{prefix}.{k}": v for prefix, state in named.items() for k, v in state.items()}


def _parameter_difference(value: Tensor, wanted: list[float]) -> float:
    """Returns the worst difference of sum, sum of absolute values, first and last element. Sums are
    relative to the sum of absolute values, elements to their mean absolute value."""
    flat = value.double().flatten()
    found = [flat.sum().item(), flat.abs().sum().item(), flat[0].item(), flat[-1].item()]
    weights = (1, 1, flat.numel(), flat.numel())
    size = max(wanted[1], np.finfo(float).tiny)
    compared = zip(found, wanted, weights, strict=True)
    return worst(abs(ours - theirs) * weight / size for ours, theirs, weight in compared)
