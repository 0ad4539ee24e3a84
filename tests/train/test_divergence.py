"""A run that goes wrong says which term and when, before its state is kept."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from qdmr_ray.config import GuardSettings
from qdmr_ray.errors import QdmrError
from qdmr_ray.train.divergence import Guard, NotFiniteError
from qdmr_ray.train.logging.prometheus import gauge_of


def scalars(**values: float) -> tuple[tuple[str, ...], torch.Tensor]:
    return tuple(n.replace("_", "/") for n in values), torch.tensor(list(values.values()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_term_and_iteration_are_named(bad: float) -> None:
    guard = Guard(GuardSettings(), "uda")
    guard.watch(*scalars(source_l1=1.0, source_gan=2.0), 1)
    assert guard.check() == []
    guard.watch(*scalars(source_l1=1.0, source_gan=bad), 2)
    guard.watch(*scalars(source_l1=bad, source_gan=bad), 3)
    message = r"stage uda: source/gan is not finite from iteration 2 on; .*stages\.uda\.optimizer"
    with pytest.raises(QdmrError, match=message) as caught:
        guard.check()
    assert "\n" not in str(caught.value)


def test_it_warns_once_or_says_nothing_by_setting() -> None:
    guard = Guard(GuardSettings(non_finite="warn"), "base")
    guard.watch(*scalars(source_l1=math.nan), 5)
    (line,) = guard.check()
    assert line.startswith("stage base: source/l1 is not finite from iteration 5 on")
    guard.watch(*scalars(source_l1=math.nan), 6)
    assert guard.check() == []
    silent = Guard(GuardSettings(non_finite="off"), "base")
    silent.watch(*scalars(source_l1=math.nan), 5)
    assert silent.check() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_weights_that_are_not_finite_are_not_kept(bad: float) -> None:
    good, broken = torch.ones(2, 3), torch.tensor([1.0, bad])
    assert Guard(GuardSettings(), "uda").check_weights([good, good], 7) == (True, [])
    with pytest.raises(NotFiniteError, match=r"uda: .*weights is not finite after iteration 7"):
        Guard(GuardSettings(), "uda").check_weights([good, broken], 7)
    # The error reaches the driver from another process.
    error = pickle.loads(pickle.dumps(NotFiniteError("what", "source/l1")))
    assert (str(error), error.metric) == ("what", "source/l1")
    warning = Guard(GuardSettings(non_finite="warn"), "uda")
    sound, (line,) = warning.check_weights([good, broken], 7)
    assert not sound
    assert "after iteration 7" in line
    assert warning.check_weights([good, broken], 8) == (False, [])
    silent = Guard(GuardSettings(non_finite="off"), "uda")
    assert silent.check_weights([good, broken], 7) == (True, [])


@pytest.mark.parametrize("value", [250.0, -250.0])
def test_an_exploding_discriminator_is_told(value: float) -> None:
    figures = {"image_discriminator/source_logit": value, "source/l1": 1e9}
    (line,) = Guard(GuardSettings(), "vqgan").check_means(figures, 70)
    assert "image_discriminator/source_logit is" in line
    assert "at iteration 70" in line
    assert Guard(GuardSettings(discriminator_logit=300), "vqgan").check_means(figures, 70) == []
    with pytest.raises(QdmrError, match="the discriminator explodes"):
        Guard(GuardSettings(discriminator="stop"), "vqgan").check_means(figures, 70)


def test_a_dying_codebook_is_told_once_for_each_domain() -> None:
    guard = Guard(GuardSettings(codebook_perplexity=2.0), "vqgan")
    figures = {"codebook/source/perplexity": 1.2, "codebook/target/perplexity": 5.0}
    (line,) = guard.check_means(figures, 10)
    assert "codebook/source/perplexity is 1.2 at iteration 10" in line
    assert "set code_guidance (stages base and uda) or revive_after (vqgan)" in line
    assert guard.check_means(figures, 20) == []
    (other,) = guard.check_means(figures | {"codebook/target/perplexity": 1.0}, 30)
    assert "codebook/target/perplexity" in other


@pytest.mark.parametrize(
    ("name", "metric", "figure"),
    [
        ("source/l1", "loss", "source/l1"),
        ("image_discriminator/source_logit", "loss", "image_discriminator/source_logit"),
        ("time/data_wait", "step_phase_seconds", "data_wait"),
        ("codebook/source/perplexity", "codebook", "source/perplexity"),
        ("learning_rate/generator", "learning_rate", "generator"),
        ("gradient_norm/discriminator", "gradient_norm", "discriminator"),
        ("data_wait_fraction", "data_wait_fraction", ""),
        ("samples_per_second", "samples_per_second", ""),
        ("model_flops_utilization", "model_flops_utilization", ""),
    ],
)
def test_each_figure_has_its_metric(name: str, metric: str, figure: str) -> None:
    assert gauge_of(name) == (metric, figure)
