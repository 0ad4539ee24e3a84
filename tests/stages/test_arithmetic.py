"""The arithmetic that a step needs is counted without doing it, and only for the terms that are on.
``tests/bench/test_bench_step.py`` has the figures of the paper's networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_stages import CROP, DISCRIMINATOR, SMALL

from qdmr_ray.nets import UNetDiscriminator
from qdmr_ray.stages import STAGES, Components
from qdmr_ray.stages.arithmetic import flop_of, needed_flop

SIZES = Components(network=SMALL, discriminator=DISCRIMINATOR)


def needed(stage: str, **settings: Any) -> float:
    kind = STAGES[stage]
    return needed_flop(kind, replace(kind.settings_type(), **settings), SIZES, CROP)


def discriminator_flop(to_input: int, to_weights: int) -> float:
    judge, image = UNetDiscriminator(3, DISCRIMINATOR), torch.rand(1, 3, CROP, CROP)
    return to_input * flop_of(judge, image, to_input=True, to_weights=False) + (
        to_weights * flop_of(judge, image, to_input=False, to_weights=True)
    )


@pytest.mark.parametrize("stage", ["vqgan", "source_only", "base"])
def test_a_term_that_is_off_needs_nothing(stage: str) -> None:
    assert needed(stage) - needed(stage, gan=0) == discriminator_flop(1, 2)


def test_domains_and_discriminators_that_uda_goes_without_need_nothing() -> None:
    whole, plain = needed("uda"), needed("uda", s2t=False)
    # Without s2t: one image less through network and VQGAN, and two of five discriminations.
    assert needed("uda", gan=0) == whole - discriminator_flop(2, 3)
    assert needed("uda", gan=0, s2t=False) == plain - discriminator_flop(1, 2)
    assert needed("uda", feature_gan=0) < whole
    assert plain < whole


def test_counting_draws_no_random_number() -> None:
    """Else a training on a GPU would begin with other weights than one on a CPU."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    needed("uda")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stage_that_does_not_say_is_not_counted() -> None:
    class Silent(STAGES["source_only"]):  # type: ignore[misc, name-defined]
        @classmethod
        def needed_passes(cls, *_: Any) -> list[Any]:
            return []

    assert needed_flop(Silent, Silent.settings_type(), SIZES, CROP) == 0
