"""Detects a run that goes wrong: values that are not finite, a discriminator that explodes, a
codebook that dies. Watching costs no wait for the GPU: each step marks on the device which terms
went wrong when; the marks are read at a log line or a checkpoint, before a bad state is kept."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from qdmr_ray.config import OFF, STOP, GuardSettings
from qdmr_ray.errors import QdmrError
from qdmr_ray.train.ranks import Ranks

# The stages give these names to what is watched.
_LOGIT = "_logit"
_PERPLEXITY = "/perplexity"
# The iteration at which a sound metric went wrong.
_NEVER = torch.iinfo(torch.int64).max


class NotFiniteError(QdmrError):
    """The run is stopped because ``metric`` is infinite or not a number."""

    # The default is needed because other processes copy the error from its message alone.
    def __init__(self, message: str, metric: str = "") -> None:
        super().__init__(message)
        self.metric = metric


class Guard:
    """Watches the metrics of one stage; every rank has a guard, and they stop together."""

    def __init__(self, settings: GuardSettings, stage: str, ranks: Ranks | None = None) -> None:
        self._settings = settings
        self._stage = stage
        self._ranks = ranks or Ranks()
        self._names: tuple[str, ...] = ()
        self._first_bad: Tensor | None = None
        self._warned: set[str] = set()

    @torch.no_grad()
    def watch(self, names: Sequence[str], values: Tensor, iteration: int) -> None:
        """Marks the metrics of one step that are not finite: ``values`` (N,), in the same order in
        each step."""
        if self._settings.non_finite == OFF:
            return
        if self._first_bad is None:
            self._names = tuple(names)
            self._first_bad = torch.full_like(values, _NEVER, dtype=torch.int64)
        first = self._first_bad
        # Of finite numbers alone the difference to itself is 0; isfinite takes twice as long.
        self._first_bad = torch.where(values - values == 0, first, first.clamp(max=iteration))

    def check(self) -> list[str]:
        """Returns a warning for each term newly found not finite; a collective call on all ranks.
        Raises NotFiniteError, which names term and iteration, where the setting says stop."""
        if self._first_bad is None:
            return []
        # The first iteration is the minimum over the ranks.
        bad = self._ranks.smallest(self._first_bad.cpu().clone()).tolist()
        found = {n: i for n, i in zip(self._names, bad, strict=True) if i != _NEVER}
        if not found:
            return []
        name, iteration = min(found.items(), key=lambda item: item[1])
        return self._not_finite(name, f"from iteration {iteration} on")

    @torch.no_grad()
    def check_weights(self, weights: Iterable[Tensor], iteration: int) -> tuple[bool, list[str]]:
        """Returns whether a state with these ``weights`` may be kept, and a warning where not. A
        step's losses are those of the weights before it, so finite losses say nothing about the
        weights that the step has made. Weights are the same on all ranks, and so is the answer.
        Raises NotFiniteError where they are not finite, or too large to be squared in their
        precision, and the setting says stop."""
        if self._settings.non_finite == OFF:
            return True, []
        norms = torch._foreach_norm(list(weights))
        if torch.stack([norm.float() for norm in norms]).isfinite().all():
            return True, []
        return False, self._not_finite("a length of weights", f"after iteration {iteration}")

    def _not_finite(self, name: str, when: str) -> list[str]:
        text = f"stage {self._stage}: {name} is not finite {when}"
        remedy = (
            "the checkpoint before it is kept; lower the learning rates "
            f"(stages.{self._stage}.optimizer) or set their clip, under another --name"
        )
        if self._settings.non_finite == STOP:
            raise NotFiniteError(f"{text}; {remedy}", name)
        return self._told(self._settings.non_finite, text, remedy)

    def check_means(self, metrics: Mapping[str, float], iteration: int) -> list[str]:
        """Returns warnings about the logged means, the same on all ranks; raises QdmrError where a
        setting says stop."""
        settings, told = self._settings, []
        for name, value in metrics.items():
            if name.endswith(_LOGIT) and abs(value) > settings.discriminator_logit:
                told += self._told(
                    settings.discriminator,
                    f"stage {self._stage}: mean logit {name} is {value:.4g} at iteration "
                    f"{iteration}, more than guard.discriminator_logit="
                    f"{settings.discriminator_logit:g}",
                    "the discriminator explodes: lower its learning rate or the gan weights",
                )
            if name.endswith(_PERPLEXITY) and value < settings.codebook_perplexity:
                told += self._told(
                    settings.codebook,
                    f"stage {self._stage}: {name} is {value:.3g} at iteration {iteration}, less "
                    f"than guard.codebook_perplexity={settings.codebook_perplexity:g}",
                    "the codebook dies: set code_guidance (stages base and uda) or revive_after "
                    "(vqgan), or lower the learning rate",
                )
        return told

    def _told(self, action: str, what: str, remedy: str) -> list[str]:
        if action == STOP:
            raise QdmrError(f"{what}; {remedy}")
        # Each metric is warned of once, not once for each logged line.
        key = what.split(" is ")[0]
        if action == OFF or key in self._warned:
            return []
        self._warned.add(key)
        return [f"{what}; {remedy}"]
