"""The exchange of gradients in one process, its own only neighbour: no bit changes, every gradient
lies in one buffer, and what it needs of gloo works. ``test_data_parallel.py`` has several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from test_compute import stage_of, steps, weights
from tiny_stages import SETTINGS, batch_of
from torch import Tensor, nn

from qdmr_ray.stages import ComputeSettings, OptimizerSettings, Stage
from qdmr_ray.stages.exchange import GradientExchange, take_from_first

CHANGES = {"accumulate": 2, "ema": 0.9, "optimizer": OptimizerSettings(clip=0.1)}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    meeting = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def gradients(module: nn.Module) -> list[Tensor]:
    found = [weight.grad for weight in module.parameters() if weight.requires_grad]
    return [grad for grad in found if grad is not None]


def joined(name: str, compute: ComputeSettings | None = None, **changes: object) -> Stage:
    stage = stage_of(name, compute, **changes)
    stage.join_workers()
    return stage


@pytest.mark.parametrize("name", SETTINGS)
def test_no_bit_changes_and_gradients_lie_in_one_buffer(name: str) -> None:
    plain, exchanging = stage_of(name, **CHANGES), joined(name, **CHANGES)
    assert steps(plain, 2) == steps(exchanging, 2)
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(exchanging)[key]), key
    assert plain.gradient_norms() == exchanging.gradient_norms()
    for objective in (exchanging.generator, exchanging.discriminators):
        found = gradients(objective)
        assert len({grad.untyped_storage().data_ptr() for grad in found}) == 1
        for weight in objective.parameters():
            # Adam's kernel goes through both in the order of memory.
            assert weight.grad is None or weight.grad.stride() == weight.stride()


def test_the_generators_gradients_travel_while_the_discriminators_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    stage = joined("base")
    for name in ("start", "finish"):
        whole = getattr(GradientExchange, name)

        def told(self: GradientExchange, name: str = name, whole: object = whole) -> None:
            index = [*stage._exchanges.values()].index(self)
            done.append(f"{name} {('generator', 'discriminators')[index]}")
            whole(self)  # type: ignore[operator]

        monkeypatch.setattr(GradientExchange, name, told)
    stage.discriminators.register_forward_pre_hook(lambda *_: done.append("judge"))
    stage.step(batch_of("base", 2))
    assert done == [
        *("start generator", "judge", "start discriminators"),
        *("finish generator", "finish discriminators"),
    ]


def test_a_weight_that_no_pass_uses_stays_as_it_is() -> None:
    stage = stage_of("base")
    idle = nn.Parameter(torch.ones(3))
    exchange = GradientExchange([idle, *stage.network.parameters()])
    stage.network.get_parameter("decoder.last.bias").grad = torch.ones(3)
    exchange.start()
    exchange.finish()
    assert torch.equal(idle.grad, torch.zeros(3))  # type: ignore[arg-type]
    # Not even a gradient of an earlier step comes back.
    idle.grad.fill_(7)  # type: ignore[union-attr]
    idle.grad = None
    exchange.start()
    exchange.finish()
    assert torch.equal(idle.grad, torch.zeros(3))  # type: ignore[arg-type]


def test_gradients_may_travel_as_bfloat16() -> None:
    plain = stage_of("base")
    narrow = joined("base", ComputeSettings(gradients="bfloat16"))
    batch = batch_of("base", 2)
    plain.step(batch)
    narrow.step(batch)
    for exact, rounded in zip(gradients(plain.generator), gradients(narrow.generator), strict=True):
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded, exact.bfloat16().float())


def test_all_kinds_of_tensors_are_taken_from_the_first_worker() -> None:
    """From itself here, through the message: layouts and types come out as they went in."""
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensors = [image, torch.tensor(3), torch.randn(4), torch.ones(2, dtype=torch.float64)]
    before = [tensor.clone() for tensor in tensors]
    take_from_first(tensors)
    for found, expected in zip(tensors, before, strict=True):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
