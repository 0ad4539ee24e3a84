"""Precision, layout, recomputation, accumulation, clipping and averaging: what each may change."""

from __future__ import annotations

import copy
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_stages import (
    CROP,
    PLAIN_AND_GUIDED,
    SETTINGS,
    TinyVGG19,
    batch_of,
    tiny_lpips,
    tiny_stage,
    trained_vqgan,
)
from torch import Tensor, nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import VQGAN, DiscriminatorSettings, SwinSettings, UNetDiscriminator
from qdmr_ray.nets.blocks import ResBlock
from qdmr_ray.nets.swin import SwinBottleneck
from qdmr_ray.stages import STAGES, BaseSettings, ComputeSettings, Stage, share_of
from qdmr_ray.stages.codebook import CodeRevival
from qdmr_ray.stages.compute import prepare

every_stage = pytest.mark.parametrize("name", STAGES)
plain_and_guided = pytest.mark.parametrize(("name", "changes"), PLAIN_AND_GUIDED)


def stage_of(
    name: str,
    compute: ComputeSettings | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **changes: object,
) -> Stage:
    settings = replace(SETTINGS[name], **changes)  # type: ignore[arg-type]
    return tiny_stage(name, settings, dtype=dtype, compute=compute)


def steps(stage: Stage, count: int = 3, batch_size: int = 4) -> list[dict[str, float]]:
    dtype = next(stage.network.parameters()).dtype
    logged = []
    for seed in range(count):
        figures = stage.step(batch_of(stage.name, batch_size, seed=seed, dtype=dtype))
        logged.append({key: float(value) for key, value in figures.items()})
    return logged


def weights(stage: Stage) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in stage.network.state_dict().items()}


@plain_and_guided
@pytest.mark.parametrize(
    "compute", [ComputeSettings(recompute=True), ComputeSettings(channels_last=True)]
)
def test_layout_and_recomputation_keep_the_numbers(
    name: str, changes: dict[str, float], compute: ComputeSettings
) -> None:
    plain, changed = (
        stage_of(name, dtype=torch.float64, **changes),
        stage_of(name, compute, dtype=torch.float64, **changes),
    )
    for expected, found in zip(steps(plain), steps(changed), strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_stage_takes_denormal_numbers_as_zero_in_all_threads() -> None:
    """A new thread stands for a worker: the threads that share its work inherit the mode."""
    found: list[Tensor] = []

    def work() -> None:
        torch.set_num_threads(2)
        stage_of("base")
        denormal = torch.tensor([1], dtype=torch.int32).expand(1 << 20).contiguous()
        found.append(denormal.view(torch.float32) * 1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not found[0].view(torch.int32).any()


def test_swin_blocks_share_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shifted and an unshifted one are traced; each of 24 by itself took minutes on a GPU."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **how: compile_module(module, backend="eager", **how)
    )
    torch._dynamo.reset()
    counters.clear()
    swin = SwinSettings(groups=2, blocks=4, heads=2, window=4, mlp_ratio=2.0)
    bottleneck, plain = SwinBottleneck(8, swin), SwinBottleneck(8, swin)
    plain.load_state_dict(bottleneck.state_dict())
    # As in a recording: what has kernels of its own is left as it is.
    others = ResBlock(8), UNetDiscriminator(3, DiscriminatorSettings(width=4))
    prepare([bottleneck, *others], ComputeSettings(compile=True, cuda_graph=True))
    x = torch.randn(1, 8, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(bottleneck(x), plain(x))
    assert counters["stats"]["unique_graphs"] == 2
    assert all(module._compiled_call_impl is None for module in others)
    assert all(block.fused for block in bottleneck.groups[0].blocks)
    assert others[0].fused
    assert others[1].conv5.fused
    torch._dynamo.reset()


class Compiled(Counter[str]):
    """Stands in for the compiler: counts the graphs of each module that ``compile`` was called on,
    by the module's class, and runs them as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        in_place = nn.Module.compile

        def compile_module(module: nn.Module, **how: bool) -> None:
            name = type(module).__name__
            # So that one that nobody calls has its count, too: zero.
            self[name] += 0

            def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
                self[name] += 1
                return graph.forward

            in_place(module, backend=backend, **how)

        monkeypatch.setattr(nn.Module, "compile", compile_module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vqgan", "uda"])
def test_what_is_compiled_is_what_a_step_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS was compiled as a whole, of which a step calls the two halves."""
    graphs = Compiled(monkeypatch)
    torch._dynamo.reset()
    stage, plain = stage_of(name, ComputeSettings(compile=True)), stage_of(name)
    for expected, found in zip(steps(plain, 1), steps(stage, 1), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    torch._dynamo.reset()
    assert all(graphs.values()), graphs
    # The truths' features take no gradient, so they have a graph of their own.
    assert graphs["LPIPSFeatures"] == 2
    networks = {"vqgan": {"SemanticHead", "TinyVGG19"}, "uda": {"SwinBlock"}}[name]
    both = {"Encoder", "Decoder", "UNetDiscriminator", "LPIPSFeatures", "LPIPSDistance"}
    assert graphs.keys() == networks | both


def test_in_a_recording_what_has_no_kernels_of_its_own_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__)
    )
    vqgan, discriminator = trained_vqgan(), UNetDiscriminator(3, DiscriminatorSettings(width=4))
    swin = SwinBottleneck(8, SwinSettings(groups=1, blocks=2, heads=2, window=4))
    for fused, own in ((None, []), (False, ["Encoder", "Decoder", "UNetDiscriminator"])):
        compiled.clear()
        compute = ComputeSettings(compile=True, cuda_graph=True, fused_kernels=fused)
        prepare([vqgan, discriminator, swin, tiny_lpips(), TinyVGG19()], compute)
        others = ["SwinBlock", "SwinBlock", "LPIPSFeatures", "LPIPSDistance", "TinyVGG19"]
        assert compiled == [*own, *others]


def test_recomputation_remembers_less() -> None:
    """Counted as the bytes that autograd keeps for the backward pass."""

    def kept(compute: ComputeSettings) -> int:
        stage = stage_of("base", compute)
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stage.generator(batch_of("base", 4))
        return total

    assert kept(ComputeSettings(recompute=True)) < 0.6 * kept(ComputeSettings())


@every_stage
def test_bfloat16_comes_close_and_keeps_losses_and_weights_in_float32(name: str) -> None:
    plain, narrow = stage_of(name), stage_of(name, ComputeSettings(dtype="bfloat16"))
    seen: list[torch.dtype] = []
    for module in narrow.generator.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    batch = batch_of(name, 4)
    expected, found = plain.step(batch), narrow.step(batch)
    assert torch.bfloat16 in seen
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert {p.dtype for p in narrow.network.parameters()} == {torch.float32}
    for key in expected:
        if not key.startswith("codebook/"):
            assert float(found[key]) == pytest.approx(float(expected[key]), rel=0.05, abs=0.02), key


def test_code_distances_are_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    vqgan = trained_vqgan()
    z = torch.randn(2, vqgan.settings.code_dim, 8, 8)
    _, expected, _ = vqgan.quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        quantized, found, loss = vqgan.quantizer(z)
    assert torch.equal(found, expected)
    assert (quantized.dtype, loss.dtype) == (torch.float32, torch.float32)


@plain_and_guided
def test_an_accumulated_step_is_the_step_of_the_whole_batch(
    name: str, changes: dict[str, float]
) -> None:
    before = weights(stage_of(name, dtype=torch.float64))
    whole = stage_of(name, dtype=torch.float64, **changes)
    parts = stage_of(name, dtype=torch.float64, accumulate=2, **changes)
    expected, found = steps(whole, 2), steps(parts, 2)
    for a, b in zip(expected, found, strict=True):
        terms = [key for key in a if not key.startswith("codebook/")]
        assert {k: b[k] for k in terms} == pytest.approx({k: a[k] for k in terms}, rel=1e-9)
    # Adam takes the sign of gradients that are rounding noise: a few weights, not many.
    one, two = weights(whole), weights(parts)
    moved = sum(float((one[key] - before[key]).square().sum()) for key in one)
    apart = sum(float((one[key] - two[key]).square().sum()) for key in one)
    assert apart < 1e-4 * moved


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"batch_size=4 can't be cut into accumulate=3"):
        BaseSettings(accumulate=3)


def test_a_batch_that_is_not_the_share_is_refused() -> None:
    stage = stage_of("base")
    stage.share = share_of(4, micro_batch=4, rank=1, world_size=2)
    with pytest.raises(ValueError, match="a batch of 3 samples; this worker's share is 2"):
        stage.step(batch_of("base", 3))


def test_clipping_scales_gradients_to_the_limit() -> None:
    free, bound = stage_of("base"), stage_of("base")
    clipped = replace(bound.settings.optimizer, clip=1e-3)
    bound.settings = replace(bound.settings, optimizer=clipped)
    free.measures_gradients = True
    batch = batch_of("base", 4)
    free.step(batch)
    bound.step(batch)
    norms = {name: float(value) for name, value in free.gradient_norms().items()}
    assert norms.keys() == {"generator", "discriminator"}
    assert norms["generator"] > 1e-3
    assert {n: float(v) for n, v in bound.gradient_norms().items()} == pytest.approx(norms)
    for objective in (bound.generator, bound.discriminators):
        grads = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
        assert float(torch.cat(grads).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_measuring_leaves_the_gradients_alone() -> None:
    """Also infinite ones: whoever looks at the run must see what happened."""
    stage, batch = stage_of("base"), batch_of("base", 4)
    stage.measures_gradients = True
    hook = stage.network.get_parameter("decoder.last.bias").register_hook(
        lambda gradient: gradient * math.inf
    )
    stage.step(batch)
    hook.remove()
    assert not math.isfinite(stage.gradient_norms()["generator"])
    encoder = stage.network.get_parameter("encoder.first.weight")
    assert encoder.grad is not None
    assert encoder.grad.isfinite().all()


def test_gradients_are_measured_only_when_asked_for() -> None:
    stage = stage_of("base")
    stage.step(batch_of("base", 4))
    assert stage.gradient_norms() == {}


def test_the_average_follows_the_weights_and_becomes_the_result() -> None:
    stage = stage_of("vqgan", ema=0.9)
    expected = {name: p.detach().clone() for name, p in stage.network.named_parameters()}
    for seed in range(3):
        stage.step(batch_of("vqgan", 2, seed=seed))
        for name, parameter in stage.network.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach()
    result = stage.result()
    assert isinstance(result, VQGAN)
    for name, parameter in result.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-7)
    assert not torch.equal(
        result.decoder.last.weight, stage.network.get_parameter("decoder.last.weight")
    )
    assert stage_of("vqgan").average is None

    again = stage_of("vqgan", ema=0.9)
    again.load_state_dict(copy.deepcopy(stage.state_dict()))
    for one in (stage, again):
        one.step(batch_of("vqgan", 2, seed=9))
    for a, b in zip(stage.result().parameters(), again.result().parameters(), strict=True):
        assert torch.equal(a, b)


def test_dead_codes_move_to_where_features_are() -> None:
    stage = stage_of("vqgan", revive_after=3)
    codes = stage.network.get_parameter("quantizer.codes")
    with torch.no_grad():
        codes[5:] = 1000.0 + torch.arange(len(codes) - 5)[:, None]  # never chosen
    revived = []
    for seed in range(3):
        batch = batch_of("vqgan", 2, seed=seed)
        revived.append(float(stage.step(batch)["codebook/revived"]))
    assert revived[:2] == [0.0, 0.0]
    assert revived[2] >= len(codes) - 5
    # Each is an encoder output of the last batch, and Adam knows nothing of it yet.
    assert isinstance(stage.network, VQGAN)
    images = torch.cat([batch["source"], batch["target"]])
    rows = stage.network.before_quant(stage.network.encoder(images)).movedim(1, -1).flatten(0, -2)
    apart = (codes[5:, None].detach() - rows.detach()).abs().amax(-1).amin(1)
    assert float(apart.max()) < 1e-5
    moments = stage.generator_optimizer.state[codes]
    assert not moments["exp_avg"][5:].any()
    used = set(stage.network(images).indices.flatten().tolist())
    assert used & set(range(5, len(codes)))


@pytest.mark.parametrize("after", [1, 3, 6])
def test_revival_looks_only_where_a_code_may_have_died(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look is to wait for the GPU, which ``nonzero`` does."""
    look, looks = Tensor.nonzero, 0

    def nonzero(tensor: Tensor) -> Tensor:
        nonlocal looks
        looks += 1
        return look(tensor)

    monkeypatch.setattr(Tensor, "nonzero", nonzero)
    torch.manual_seed(0)
    vqgan = trained_vqgan().requires_grad_(False)
    codes, images = len(vqgan.quantizer.codes), torch.rand(1, 3, CROP, CROP)
    adam, revival = torch.optim.Adam([torch.zeros(1)]), CodeRevival(vqgan, after)
    idle = torch.zeros(codes, dtype=torch.int64)
    iterations, died = 60, 0
    for iteration in range(iterations):
        if iteration == iterations // 2:
            # As a checkpoint does.
            revival = CodeRevival(vqgan, after)
            revival.resume(idle.clone())
        # The first code is chosen in every third iteration, all others in each.
        chosen = torch.arange(int(torch.rand(()) > 1 / 3), codes)
        idle += 1
        idle[chosen] = 0
        dead = look(idle >= after).flatten()
        idle[dead] = 0
        assert torch.equal(revival.step(chosen, images, iteration, adam), dead)
        assert torch.equal(revival.idle, idle)
        died += len(dead)
    assert died
    assert looks == iterations if after == 1 else looks < 0.8 * iterations


def test_codes_are_averages_of_what_chose_them() -> None:
    stage, decay = stage_of("vqgan", code_decay=0.75), 0.75
    network = stage.network
    assert isinstance(network, VQGAN)
    codes = network.quantizer.codes
    with torch.no_grad():
        z = network(batch_of("vqgan", 2, seed=0)["source"]).z
        codes.copy_(z.movedim(1, -1).flatten(0, -2)[: len(codes)])
        codes[5] = 1000.0  # never chosen
    started = codes.clone()
    counts = [0.0] * len(codes)
    sums = torch.zeros_like(codes)
    for seed in range(3):
        batch = batch_of("vqgan", 2, seed=seed)
        with torch.no_grad():
            out = network(torch.cat([batch["source"], batch["target"]]))
        rows, chosen = out.z.movedim(1, -1).flatten(0, -2), out.indices.flatten()
        stage.step(batch)
        for code in chosen.unique().tolist():
            own = rows[chosen == code]
            old = decay if counts[code] else 0.0
            counts[code] = old * counts[code] + (1 - old) * len(own)
            sums[code] = old * sums[code] + (1 - old) * own.sum(0)
            torch.testing.assert_close(codes[code], sums[code] / counts[code])
        for code in set(range(len(codes))) - set(chosen.tolist()):
            counts[code], sums[code] = decay * counts[code], decay * sums[code]
    assert sum(count > 0 for count in counts) > 2
    # Adam moves no code.
    assert torch.equal(codes[5], started[5])
    assert codes not in stage.generator_optimizer.state


def test_a_revived_code_forgets_what_chose_it() -> None:
    stage = stage_of("vqgan", code_decay=0.9, revive_after=2)
    codes = stage.network.get_parameter("quantizer.codes")
    stage.step(batch_of("vqgan", 2, seed=0))
    with torch.no_grad():
        codes[3:] = 1000.0
    revived = [float(stage.step(batch_of("vqgan", 2, seed=1))["codebook/revived"])]
    batch = batch_of("vqgan", 2, seed=2)
    revived.append(float(stage.step(batch)["codebook/revived"]))
    assert sum(revived) >= len(codes) - 3
    assert float(codes.detach().abs().max()) < 100
    moved = codes.detach().clone()
    stage.step(batch)
    # What had chosen a code before it moved pulls it back no more.
    assert float((codes.detach() - moved).abs().max()) < 10


@pytest.mark.parametrize("settings", [{"revive_after": 2}, {"revive_after": 2, "code_decay": 0.9}])
def test_codes_resume_with_the_same_bits(settings: dict[str, float]) -> None:
    whole, again = stage_of("vqgan", **settings), stage_of("vqgan", **settings)
    batches = [batch_of("vqgan", 2, seed=seed) for seed in range(4)]
    for batch in batches[:1]:
        whole.step(batch)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    for batch in batches[1:]:
        whole.step(batch)
        again.step(batch)
    for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_codes_are_neither_averaged_nor_revived_by_default() -> None:
    plain = stage_of("vqgan")
    assert "codebook/revived" not in plain.step(batch_of("vqgan", 2))
    assert not {"idle_codes", "code_counts", "code_sums"} & set(plain.state_dict())
    assert plain.network.get_parameter("quantizer.codes").requires_grad
