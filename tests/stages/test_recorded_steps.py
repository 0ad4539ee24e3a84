"""Steps recorded as a CUDA graph: the same training, on a GPU; and what is refused elsewhere."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from tiny_stages import CROP, PLAIN_AND_GUIDED, SETTINGS, batch_of, tiny_stage
from torch import Tensor, nn

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.nets.blocks import ResBlock
from qdmr_ray.stages import ComputeSettings, OptimizerSettings, Stage
from qdmr_ray.stages.adam import Adam
from qdmr_ray.stages.compute import prepare
from qdmr_ray.stages.graph import WARM_UP, RecordedSteps

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = WARM_UP + 5
# GPUs add gradients in any order, and Adam's first steps are about as large for any gradient.
TOLERANCE = 2e-3


def stage_of(name: str, *, recorded: bool, dtype: str = "float32", **changes: object) -> Stage:
    return stage_that(name, ComputeSettings(dtype=dtype, cuda_graph=recorded), **changes)


def stage_that(name: str, compute: ComputeSettings, **changes: object) -> Stage:
    # A rate that falls to a tenth in the middle of what is played back.
    rates = OptimizerSettings(milestones=(WARM_UP + 2,), gamma=0.1)
    settings = replace(SETTINGS[name], optimizer=rates, **changes)  # type: ignore[arg-type]
    return tiny_stage(name, settings, compute=compute, device="cuda")


def trained(stage: Stage, steps: int, first: int = 0) -> list[dict[str, float]]:
    logged = []
    for seed in range(first, first + steps):
        batch = {k: x.cuda() for k, x in batch_of(stage.name, 4, seed=seed).items()}
        figures = stage.step(batch) | stage.gradient_norms()
        logged.append({name: float(value) for name, value in figures.items()})
    return logged


def weights(stage: Stage) -> Tensor:
    networks = [stage.generator, stage.discriminators]
    return torch.cat([p.detach().flatten().cpu() for n in networks for p in n.parameters()])


@on_a_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "changes"), PLAIN_AND_GUIDED)
def test_a_recording_trains_alike(name: str, changes: dict[str, float], dtype: str) -> None:
    plain, recorded = (
        stage_of(name, recorded=x, dtype=dtype, ema=0.9, **changes) for x in (False, True)
    )
    plain.measures_gradients = True
    start = weights(plain)
    for expected, found in zip(trained(plain, STEPS), trained(recorded, STEPS), strict=True):
        assert found == pytest.approx(expected, rel=0.05, abs=TOLERANCE)
    way = (weights(plain) - start).norm()
    assert (weights(recorded) - weights(plain)).norm() < 0.1 * way
    assert plain.average is not None
    assert recorded.average is not None
    for ours, theirs in zip(recorded.average.weights, plain.average.weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@on_a_gpu
@pytest.mark.parametrize("compute", [{"recompute": True}, {"fused_kernels": False}])
def test_a_recording_of_another_arithmetic_trains_alike(compute: dict[str, bool]) -> None:
    plain, recorded = (
        stage_that("base", ComputeSettings(cuda_graph=x, **compute)) for x in (False, True)
    )
    plain.measures_gradients = True
    for expected, found in zip(trained(plain, STEPS), trained(recorded, STEPS), strict=True):
        assert found == pytest.approx(expected, rel=0.05, abs=TOLERANCE)


@on_a_gpu
@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_recording_holds_the_exchange_of_gradients(
    name: str, gradients: str, tmp_path: Path
) -> None:
    """By NCCL, whose only worker is its own neighbour, in parts and with gradients clipped."""
    changes: dict[str, Any] = {"accumulate": 2, "ema": 0.9}
    plain = stage_that(name, ComputeSettings(), **changes)
    compute = ComputeSettings(cuda_graph=True, gradients=gradients)
    recorded = stage_that(name, compute, **changes)
    plain.measures_gradients = True
    meeting = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("nccl", init_method=meeting, rank=0, world_size=1)
    try:
        recorded.join_workers()
        for expected, found in zip(trained(plain, STEPS), trained(recorded, STEPS), strict=True):
            assert found == pytest.approx(expected, rel=0.05, abs=TOLERANCE)
        # The gradients of the recording lie in the exchange's buffer.
        assert {len(storages(adam)) for adam in recorded._exchanges} == {1}
    finally:
        recorded.close()
        torch.distributed.destroy_process_group()


def storages(optimizer: torch.optim.Optimizer) -> set[int]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return {weight.grad.untyped_storage().data_ptr() for weight in weights}


@on_a_gpu
def test_logged_figures_are_not_written_over() -> None:
    stage = stage_of("base", recorded=True)
    trained(stage, WARM_UP + 1)
    batches = [{k: x.cuda() for k, x in batch_of("base", 4, seed=s).items()} for s in (50, 51)]
    first = stage.step(batches[0])
    before = {name: float(value) for name, value in first.items()}
    stage.step(batches[1])
    assert {name: float(value) for name, value in first.items()} == before


@on_a_gpu
def test_batches_are_brought_over_while_steps_are_recorded() -> None:
    """As the prefetching thread does, which pins memory, asks for more on the GPU and copies."""
    stop, failed = threading.Event(), []

    def bring() -> None:
        stream = torch.cuda.Stream()
        try:
            with torch.cuda.stream(stream):
                while not stop.is_set():
                    torch.rand(1 << 20).pin_memory().to("cuda", non_blocking=True).float()
                    stream.record_event().synchronize()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=bring)
    thread.start()
    try:
        trained(stage_of("base", recorded=True), STEPS)
    finally:
        stop.set()
        thread.join()
    assert not failed


@on_a_gpu
def test_images_of_another_size_in_between_change_nothing() -> None:
    """Photographs to validate with: the attention's mask is another then."""
    plain, recorded = (stage_of("base", recorded=x) for x in (False, True))
    plain.measures_gradients = True
    trained(plain, WARM_UP + 1)
    trained(recorded, WARM_UP + 1)
    with torch.no_grad():
        recorded.network(torch.rand(1, 3, 4 * CROP, 2 * CROP, device="cuda"))
    # Over whatever memory that has freed.
    rubbish = [torch.full((1 << 12,), 1e9, device="cuda") for _ in range(100)]
    expected, found = (trained(stage, 3, first=50) for stage in (plain, recorded))
    del rubbish
    for wanted, got in zip(expected, found, strict=True):
        assert got == pytest.approx(wanted, rel=0.05, abs=TOLERANCE)


@on_a_gpu
def test_a_recording_goes_on_after_a_restart() -> None:
    whole = stage_of("uda", recorded=True)
    trained(whole, STEPS)
    state = copy.deepcopy(whole.state_dict())
    expected = trained(whole, STEPS, first=STEPS)
    for recorded in (True, False):
        again = stage_of("uda", recorded=recorded)
        trained(again, STEPS, first=100)
        again.load_state_dict(copy.deepcopy(state))
        again.measures_gradients = True
        for wanted, found in zip(expected, trained(again, STEPS, first=STEPS), strict=True):
            assert found == pytest.approx(wanted, rel=0.05, abs=TOLERANCE)


@on_a_gpu
def test_dead_codes_are_revived_from_what_a_recording_chose() -> None:
    stage = stage_of("vqgan", recorded=True, revive_after=WARM_UP + 2)
    revived = [figures["codebook/revived"] for figures in trained(stage, WARM_UP + 3)]
    assert not any(revived[: WARM_UP + 1])
    assert revived[WARM_UP + 1] > 0


@on_a_gpu
def test_codes_are_averages_of_what_chose_them_in_a_recording() -> None:
    stage = stage_of("vqgan", recorded=True, code_decay=0.9)
    codes = stage.network.get_parameter("quantizer.codes")
    trained(stage, WARM_UP + 2)
    before = codes.clone()
    trained(stage, 2, first=WARM_UP + 2)
    assert not torch.equal(codes, before)
    unrecorded = stage_of("vqgan", code_decay=0.9)
    trained(unrecorded, WARM_UP + 4)
    torch.testing.assert_close(
        codes, unrecorded.network.get_parameter("quantizer.codes"), rtol=0.05, atol=TOLERANCE
    )


def test_a_step_that_cannot_be_recorded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, whose part stand-ins take."""

    @contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        yield

    for name, stand_in in (("graph", graph), ("CUDAGraph", object), ("Stream", object)):
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def work(batch: object) -> dict[str, Tensor]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSearch")

    with pytest.raises(
        QdmrError, match=r"compute\.cuda_graph=true: .*capturing\); set it to false$"
    ):
        RecordedSteps(work)._record({"source": torch.zeros(1)})


def test_a_cpu_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"compute\.cuda_graph .* on the cpu; set it to false"):
        tiny_stage("base", SETTINGS["base"], compute=ComputeSettings(cuda_graph=True))


def test_kernels_for_gpus_are_refused_on_a_cpu_where_they_are_asked_for() -> None:
    wanted = ComputeSettings(fused_kernels=True)
    with pytest.raises(SettingsError, match=r"fused_kernels=true .* on the cpu; leave it unset"):
        tiny_stage("base", SETTINGS["base"], compute=wanted)


def test_kernels_are_marked_unless_they_are_switched_off() -> None:
    for wanted, marked in ((None, True), (False, False)):
        block = ResBlock(8)
        prepare([block], ComputeSettings(fused_kernels=wanted))
        assert block.fused is marked


def test_a_closed_stage_holds_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, whose stream a stand-in is."""
    monkeypatch.setattr(torch.cuda, "Stream", object)
    stage = tiny_stage("base", SETTINGS["base"])
    stage.close()
    recorded = stage._recorded = RecordedSteps(stage._work)
    recorded._recordings[(("source", torch.Size([1])),)] = object()  # type: ignore[assignment]
    stage.close()
    assert not recorded._recordings


def test_several_workers_may_record() -> None:
    # Where there is a GPU there may be PyTorch alone, and settings need pydantic.
    config = pytest.importorskip("qdmr_ray.config")
    values = {"compute": {"cuda_graph": True}, "scaling": {"workers": 2}}
    assert config.experiment_from_dict(values).compute.cuda_graph


def test_the_saved_state_does_not_say_whether_steps_were_recorded() -> None:
    def adam() -> Adam:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = Adam(layer.parameters(), lr=1e-2, fused=True)
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return optimizer

    plain, recorded = adam(), adam()
    recorded.prepare_for_recording()
    for optimizer in (plain, recorded):
        optimizer.set_rate(0.5)
    saved = recorded.state_dict()
    torch.testing.assert_close(saved, plain.state_dict(), rtol=0, atol=0)
    assert saved["param_groups"][0]["lr"] == 0.5
    assert saved["param_groups"][0]["capturable"] is False
    # The tensor that a recording reads stays where it is.
    rate = recorded.param_groups[0]["lr"]
    recorded.load_state_dict(
        copy.deepcopy(
            saved | {"param_groups": [group | {"lr": 0.25} for group in saved["param_groups"]]}
        )
    )
    assert recorded.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25
    assert recorded.param_groups[0]["capturable"] is True
    # What was set before the checkpoint was loaded is set again, and then not a second time.
    recorded.set_rate(0.5)
    written = rate._version
    recorded.set_rate(0.5)
    assert (float(rate), rate._version) == (0.5, written)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == 0.5
    assert plain.param_groups[0]["capturable"] is False
