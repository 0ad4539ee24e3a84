"""What the stages share: two objectives, two optimizers, one ``step(batch)``, checkpoint state.

A new stage is one file with its settings and a subclass of :class:`Stage` that builds its networks
and defines two losses; ``source_only.py`` is the shortest. An experiment names a user's stages in
``plugins``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qdmr_ray.losses import discriminator_gan_loss, generator_gan_loss
from qdmr_ray.nets import RestorationNetworkSettings, UNetDiscriminator
from qdmr_ray.nets.lpips import LPIPS
from qdmr_ray.stages.adam import Adam
from qdmr_ray.stages.batch_share import Share, share_of
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.compute import (
    BFLOAT16,
    ComputeSettings,
    autocast,
    prepare,
    tensor_float_32,
)
from qdmr_ray.stages.ema import MovingAverage
from qdmr_ray.stages.exchange import GradientExchange, take_from_first
from qdmr_ray.stages.graph import WARM_UP, RecordedSteps
from qdmr_ray.stages.objective import (
    Batch,
    Losses,
    LossPass,
    Objective,
    by_name,
    detached,
    frozen,
    weighted_sum,
)
from qdmr_ray.stages.settings import StageSettings
from qdmr_ray.stages.sizes import check_crop


@dataclass(frozen=True)
class NeededPass:
    """Arithmetic that a step needs: ``times`` forward passes of ``network`` on ``inputs``
    (B, C, H, W), with backward passes to the input, to the weights, both or neither."""

    network: Callable[[Tensor], Tensor]
    inputs: Tensor
    to_input: bool = False
    to_weights: bool = False
    times: int = 1


class Stage:
    """One training stage on one device, built from its settings and ``Components``.

    A step draws random numbers only from a generator seeded by ``iteration``, so a checkpoint holds
    no random states, and a resumed run ends with the same bits.

    Subclasses build their networks, define ``generator_loss`` and ``discriminator_loss``, and set:

    - ``name``: the stage's name in ``run`` and below ``stages`` of an experiment;
    - ``settings_type``: the section ``stages.NAME``, a subclass of ``StageSettings``;
    - ``domains``: the entries of a batch that the stage reads;
    - ``needs``: the trained stages that it starts from, each named before it in ``run``;
    - ``label``, ``help``: its name in reports, and its purpose in a few words; by default the name,
      and the first line of the class's docstring;
    - ``kind``: the kind of its result in ``model.json``; by default the stage's name;
    - ``restores``: whether the result corrects photographs, so that it is evaluated;
    - ``network_kinds``: the kinds of network that it trains, None for any;
    - ``backbones``: the frozen network that each term compares with, by the setting of the term's
      weight; a run looks for it before training, unless that weight is 0;
    - ``unused_sizes``: network settings that don't change the result; its digest omits them;
    - ``version``: raised when a change of the code makes the same settings train another result.
    """

    name: ClassVar[str]
    label: ClassVar[str] = ""
    help: ClassVar[str] = ""
    settings_type: ClassVar[type[StageSettings]]
    kind: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    domains: ClassVar[tuple[str, ...]]
    restores: ClassVar[bool] = True
    network_kinds: ClassVar[tuple[str, ...] | None] = None
    backbones: ClassVar[dict[str, str]] = {"lpips": "vgg16"}
    unused_sizes: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    # The network that the stage trains for its final result.
    network: nn.Module

    def __init__(
        self,
        settings: StageSettings,
        *,
        generator: dict[str, nn.Module],
        discriminators: dict[str, UNetDiscriminator],
        lpips: LPIPS | None,
        auxiliary: Iterable[nn.Module] = (),
    ) -> None:
        self.settings = settings
        self.iteration = 0
        self.lpips = lpips
        self.generator = Objective(generator, self.generator_loss)
        self.discriminators = Objective(dict(discriminators), self.discriminator_loss)
        # Frozen networks that the losses use have no optimizer and are not saved.
        self.auxiliary = nn.ModuleList([*auxiliary, *([lpips] if lpips else [])])
        self.auxiliary.requires_grad_(False).eval()
        # Whether the next step measures its gradients, which takes a pass over them.
        self.measures_gradients = False
        self._gradient_norms: Losses = {}
        self.average: MovingAverage | None = None
        # This worker's share of the batch; None stands for the whole batch.
        self.share: Share | None = None
        self._recorded: RecordedSteps | None = None
        # Tensors that the last step's passes kept for ``after_step``.
        self._kept: list[Mapping[str, Tensor]] = []
        # By optimizer, where there are several workers.
        self._exchanges: dict[torch.optim.Optimizer, GradientExchange] = {}

    # -- what a subclass defines -------------------------------------------------------------

    def generator_loss(self, batch: Batch) -> LossPass:
        """Returns the generator's weighted terms and what else the pass computes; ``batch`` holds
        float images (B, 3, H, W) in [0, 1] under the names in ``domains``."""
        raise NotImplementedError

    def discriminator_loss(self, seen: Batch) -> LossPass:
        """Returns the discriminators' terms and mean logits from the tensors that the generator's
        pass has ``seen``; called only where there are discriminators. Neither optimizer has moved
        its weights yet."""
        raise NotImplementedError

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Returns images (B, 3, H, W) by caption, for people to look at; no gradients."""
        raise NotImplementedError

    def after_step(self, batch: Batch, kept: Sequence[Mapping[str, Tensor]]) -> Losses:
        """Runs after both optimizers' steps, outside of any recording, so it may wait for the GPU;
        ``kept`` are each micro-batch's tensors. Returns further scalars to log."""
        return {}

    @classmethod
    def check_sizes(cls, settings: StageSettings, network: RestorationNetworkSettings) -> None:
        """Raises SettingsError where a network of the stage doesn't take its crops; called when
        settings are loaded. Subclasses with networks of their own add theirs."""
        check_crop(cls.name, settings, network.multiple, "the network's downsampling x swin.window")

    @classmethod
    def check_backbones(cls, settings: StageSettings, network: RestorationNetworkSettings) -> None:
        """Raises SettingsError where a term that is on compares with a frozen network that
        ``network`` doesn't go with; called before the stage is trained here, since one that comes
        from elsewhere needs no such term."""

    @classmethod
    def needed_passes(
        cls, settings: StageSettings, components: Components, image: Tensor
    ) -> list[NeededPass]:
        """Returns the arithmetic that a step on one ``image`` (1, 3, H, W) needs by the method,
        however the stage computes it, for :mod:`qdmr_ray.stages.arithmetic`; nothing where that is
        unknown."""
        return []

    # -- what the training loop calls --------------------------------------------------------

    def to(
        self,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        compute: ComputeSettings | None = None,
    ) -> Self:
        """Moves every network and makes the optimizers; must be called once, before the first step.
        ``dtype`` is that of weights and images, ``compute.dtype`` that of the arithmetic. Raises
        SettingsError where ``device`` lacks what ``compute`` asks for."""
        self.device = torch.device(device)
        self.compute = compute or ComputeSettings()
        self.compute.check(self.device)
        for module in (self.generator, self.discriminators, self.auxiliary):
            module.to(device=device, dtype=dtype)
        networks = [*self.generator.networks.values(), *self.discriminators.networks.values()]
        prepare([*networks, *self.auxiliary], self.compute)
        optimizer = self.settings.optimizer
        options: Any = {"betas": optimizer.betas, "eps": optimizer.eps, "fused": True}
        trained = [p for p in self.generator.parameters() if p.requires_grad]
        self.generator_optimizer = Adam(trained, lr=optimizer.generator_lr, **options)
        self.discriminator_optimizer: Adam | None = None
        if self.has_discriminators:
            judges = self.discriminators.parameters()
            self.discriminator_optimizer = Adam(judges, lr=optimizer.discriminator_lr, **options)
        if self.settings.ema is not None:
            self.average = MovingAverage(self.network, self.settings.ema)
        if self.compute.cuda_graph:
            self._recorded = RecordedSteps(self._work)
            for adam in self._optimizers:
                adam.prepare_for_recording()
        return self

    def join_workers(self) -> None:
        """Takes the weights of rank 0, and averages gradients over the workers in every step from
        now on; a collective call on all workers of the default process group, after :meth:`to`."""
        averaged = self.average.weights if self.average is not None else []
        # Spectral norms follow from the weights, so they stay equal without being exchanged again.
        take_from_first([*_tensors(self.generator), *_tensors(self.discriminators), *averaged])
        narrow = self.compute.gradients == BFLOAT16
        self._exchanges = {
            adam: GradientExchange(_weights(adam), narrow=narrow) for adam in self._optimizers
        }

    def close(self) -> None:
        """Discards a recording: NCCL ends no process group that a recording still refers to."""
        if self._recorded is not None:
            self._recorded.forget()

    def step(self, batch: Batch) -> Losses:
        """Runs one generator and one discriminator step; returns every logged scalar, detached.

        ``batch`` holds float images (B, 3, H, W) in [0, 1] under the names in ``domains``; with
        several workers they are the samples of ``share``, and a scalar's mean over the workers is
        that of the whole batch.
        """
        self.iteration += 1
        self._set_learning_rates()
        images = {name: batch[name] for name in self.domains}
        logged = self._work(images) if self._recorded is None else self._recorded(images)
        return logged | self.after_step(batch, self._kept)

    def _work(self, batch: Batch) -> Losses:
        """Does the tensor work of :meth:`step`."""
        share = self._share(len(batch[self.domains[0]]))
        inputs: list[Batch] = self._micro_batches(batch, share)
        adam, judging = self.generator_optimizer, self.discriminator_optimizer
        with tensor_float_32(self.compute, self.device):
            with frozen(self.discriminators):
                passes = self._descend(self.generator, adam, inputs, share)
            logged = _logged(passes, share)
            # A micro-batch of weight 0 repeats a sample.
            self._kept = [out.kept for out, w in zip(passes, share.weights, strict=True) if w]
            if judging is not None:
                inputs = [detached(out.seen) for out in passes]
                passes = self._descend(self.discriminators, judging, inputs, share)
                logged |= _logged(passes, share)
            # Only now, so that the generator's gradients travel while the discriminators work.
            for optimizer in self._optimizers:
                self._move(optimizer)
        if self.average is not None:
            self.average.update(self.network)
        return logged

    def gradient_norms(self) -> Losses:
        """Returns by optimizer the last step's gradient norm before any clipping, a scalar."""
        return dict(self._gradient_norms)

    def result(self) -> nn.Module:
        """Returns the trained network, or its moving average where ``ema`` is set."""
        return self.network if self.average is None else self.average.network(self.network)

    def _share(self, samples: int) -> Share:
        share = self.share or share_of(
            samples, micro_batch=max(1, samples // self.settings.accumulate)
        )
        if share.count != samples:
            raise ValueError(f"a batch of {samples} samples; this worker's share is {share.count}")
        return share

    def _micro_batches(self, batch: Batch, share: Share) -> list[Batch]:
        """Splits the batch into the micro-batches of ``share``, laid out as ``compute`` says."""
        layout = self.compute.memory_format
        images = {name: batch[name].contiguous(memory_format=layout) for name in self.domains}
        pieces: list[Batch] = []
        first = 0
        for size in share.micro_batches:
            # An empty micro-batch takes the sample before it, with weight 0.
            rows = slice(first, first + size) if size else slice(first - 1, first)
            pieces.append({name: values[rows] for name, values in images.items()})
            first += size
        return pieces

    def _descend(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: Sequence[Batch],
        share: Share,
    ) -> list[LossPass]:
        """Computes the gradients of the weighted loss over the micro-batches ``inputs``, and starts
        their exchange; returns the pass of each. All passes start from the same estimates of the
        spectral norms, so that the gradients together are those of the whole batch in one piece."""
        optimizer.zero_grad(set_to_none=True)
        estimates = list(self.discriminators.buffers())
        before = [value.clone() for value in estimates] if len(inputs) > 1 else []
        outputs = []
        for i, (piece, weight) in enumerate(zip(inputs, share.weights, strict=True)):
            if i:
                for value, earlier in zip(estimates, before, strict=True):
                    value.copy_(earlier)
            with autocast(self.compute, self.device):
                out: LossPass = objective(piece)
            loss = torch.stack(list(out.terms.values())).sum()
            (loss if weight == 1 else loss * weight).backward()
            outputs.append(out)
        if optimizer in self._exchanges:
            self._exchanges[optimizer].start()
        return outputs

    def _move(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes one step of ``optimizer`` with the gradients of all workers."""
        if optimizer in self._exchanges:
            self._exchanges[optimizer].finish()
        self._clip(optimizer)
        optimizer.step()

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        limit = self.settings.optimizer.clip
        # A recording has to do the same in every step.
        if limit is None and not self.measures_gradients and self._recorded is None:
            return
        name = "generator" if optimizer is self.generator_optimizer else "discriminator"
        weights = _weights(optimizer)
        gradients = [p.grad for p in weights if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if limit is not None:
            nn.utils.clip_grads_with_norm_(weights, limit, norm)
        self._gradient_norms[name] = norm.detach()

    @property
    def _optimizers(self) -> list[Adam]:
        both = self.generator_optimizer, self.discriminator_optimizer
        return [optimizer for optimizer in both if optimizer is not None]

    @property
    def slow_steps(self) -> int:
        """First steps after a start, whose costs (allocation, kernel choice, a recording) are not
        those of the other steps."""
        return 1 if self._recorded is None else WARM_UP + 1

    @property
    def has_discriminators(self) -> bool:
        """Whether any adversarial term is switched on."""
        return len(self.discriminators.networks) > 0

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that training changes, as tensors and plain values only."""
        state = {
            "iteration": self.iteration,
            "generator": self.generator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
        }
        if self.discriminator_optimizer is not None:
            state["discriminators"] = self.discriminators.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        if self.average is not None:
            state["average"] = self.average.weights
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; strict about names and shapes."""
        self.iteration = state["iteration"]
        self.generator.load_state_dict(state["generator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        if self.discriminator_optimizer is not None:
            self.discriminators.load_state_dict(state["discriminators"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        if self.average is not None:
            for weight, stored in zip(self.average.weights, state["average"], strict=True):
                weight.copy_(stored)
        if self._recorded is not None:
            # The optimizers have new moment tensors.
            self._recorded.forget()

    # -- what subclasses share ---------------------------------------------------------------

    def image_terms(self, outputs: Mapping[str, Tensor], truths: Mapping[str, Tensor]) -> Losses:
        """Returns L1 and, where it is switched on, LPIPS of each output to the truth of its
        name."""
        weights = self.settings
        terms = {
            f"{domain}/l1": weights.l1 * (output - truths[domain]).abs().mean()
            for domain, output in outputs.items()
        }
        if self.lpips is not None:
            distances = self._lpips(self.lpips, outputs, truths)
            terms |= {f"{d}/lpips": weights.lpips * value for d, value in distances.items()}
        return terms

    def _lpips(
        self, lpips: LPIPS, outputs: Mapping[str, Tensor], truths: Mapping[str, Tensor]
    ) -> Losses:
        """Runs VGG once over all outputs, and once over all truths, which outputs may share."""
        apart = {id(truths[domain]): truths[domain] for domain in outputs}
        with torch.no_grad():
            seen = _by_image(lpips, list(apart.values()))
        found = _by_image(lpips, list(outputs.values()))
        kept = dict(zip(apart, seen, strict=True))
        return {
            domain: lpips.distance(features, kept[id(truths[domain])]).mean()
            for domain, features in zip(outputs, found, strict=True)
        }

    def gan_terms(self, outputs: Mapping[str, Tensor]) -> Losses:
        """Returns adversarial terms of restored images by domain, passed in the order given."""
        if "image" not in self.discriminators.networks:
            return {}
        loss = self.settings.gan_loss
        return {
            f"{domain}/gan": self.settings.gan * generator_gan_loss(loss, logits)
            for domain, logits in self.discriminate("image", outputs).items()
        }

    def discriminator_terms(
        self, network: str, loss: str, real: Mapping[str, Tensor], fake: Mapping[str, Tensor]
    ) -> LossPass:
        """Returns one discriminator's terms and mean logits by name, for real and then fake."""
        terms, logged = Losses(), Losses()
        if network not in self.discriminators.networks:
            return LossPass(terms)
        for name, logits in self.discriminate(network, {**real, **fake}).items():
            key = f"{network}_discriminator/{name}"
            terms[key] = discriminator_gan_loss(loss, logits, real=name in real)
            logged[f"{key}_logit"] = logits.detach().mean()
        return LossPass(terms, logged)

    def discriminate(self, network: str, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns logits by name, from one batched pass that counts as one forward per entry."""
        discriminator = self.discriminators.networks[network]
        return by_name(images, discriminator(torch.cat(list(images.values())), passes=len(images)))

    @staticmethod
    def discriminator_passes(
        settings: StageSettings, components: Components, image: Tensor, restored: int = 1
    ) -> list[NeededPass]:
        """Returns the image discriminator's passes in a step with ``restored`` images per truth."""
        if not settings.gan:
            return []
        judge = UNetDiscriminator(3, components.discriminator)
        return [
            # The generator's step needs only the gradient of its input.
            NeededPass(judge, image, to_input=True, times=restored),
            NeededPass(judge, image, to_weights=True, times=restored + 1),
        ]

    def _set_learning_rates(self) -> None:
        optimizer = self.settings.optimizer
        factor = optimizer.factor(self.iteration)
        self.generator_optimizer.set_rate(optimizer.generator_lr * factor)
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.set_rate(optimizer.discriminator_lr * factor)


def _logged(passes: Sequence[LossPass], share: Share) -> Losses:
    """Returns the scalars that the micro-batches' passes log, weighted as their losses."""
    return weighted_sum([detached(out.terms) | out.logged for out in passes], share.weights)


def _by_image(lpips: LPIPS, images: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Returns the features of each of ``images``, which pass through VGG together."""
    levels = lpips.features(torch.cat(list(images)))
    return list(zip(*(level.chunk(len(images)) for level in levels), strict=True))


def _weights(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
