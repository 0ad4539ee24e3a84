"""Settings that all stages share, with the paper's (Real-Sim) defaults."""

from dataclasses import dataclass

from qdmr_ray.errors import SettingsError
from qdmr_ray.losses import GAN_LOSSES
from qdmr_ray.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """Settings of Adam, which trains the generator and, separately, the discriminators."""

    generator_lr: float = setting(1e-4, "learning rate of the generator", above=0)
    discriminator_lr: float = setting(4e-4, "learning rate of the discriminators", above=0)
    betas: tuple[float, float] = setting(
        (0.9, 0.99), "decay of Adam's running moments", minimum=0, maximum=1
    )
    eps: float = setting(1e-8, "Adam's term against division by zero", above=0)
    milestones: tuple[int, ...] = setting(
        (), "iterations after which the learning rates are multiplied by gamma", minimum=0
    )
    gamma: float = setting(0.5, "factor on the learning rates at each milestone", above=0)
    clip: float | None = setting(
        None, "largest length of the gradients of each optimizer; longer ones are scaled", above=0
    )

    def factor(self, iteration: int) -> float:
        """Returns the factor on the learning rates in ``iteration``, counted from 1; a milestone m
        takes effect from iteration m + 1."""
        return self.gamma ** sum(milestone < iteration for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class ScheduledOptimizerSettings(OptimizerSettings):
    """Adam with the paper's schedule for Base and UDA, which halves the learning rates."""

    milestones: tuple[int, ...] = setting(
        (100_000, 150_000, 175_000, 190_000),
        "iterations after which the learning rates are multiplied by gamma",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """The settings of every stage: its length, batch, crop and the terms that all stages share."""

    iterations: int = setting(
        200_000, "generator steps (each with a discriminator step)", minimum=1
    )
    batch_size: int = setting(4, "samples per worker and iteration", minimum=1)
    crop: int = setting(256, "side of the training crops", unit="pixels", minimum=1)
    same_place_crops: bool = setting(
        False, "cut source and target at the same place in the lens's field of view"
    )
    l1: float = setting(1.0, "weight of the L1 term", minimum=0)
    lpips: float = setting(
        1.0, "weight of the LPIPS-VGG term; 0 switches it off, and no VGG16 is needed", minimum=0
    )
    gan: float = setting(
        0.01, "weight of the adversarial term; 0 leaves the image discriminator out", minimum=0
    )
    gan_loss: str = setting("hinge", "form of the adversarial term", choices=GAN_LOSSES)
    accumulate: int = setting(
        1, "equal micro-batches of a batch, one after the other: less memory", minimum=1
    )
    ema: float | None = setting(
        None,
        "decay of a moving average of the network's weights, which is then the stage's result; "
        "the paper has none",
        above=0,
        maximum=1,
    )
    optimizer: OptimizerSettings = setting(OptimizerSettings, "Adam and its schedule")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise SettingsError(
                f"batch_size={self.batch_size} can't be cut into accumulate={self.accumulate} "
                "equal micro-batches"
            )


@dataclass(frozen=True, kw_only=True)
class RestorationSettings(StageSettings):
    """Settings of the stages that train the restoration network."""

    optimizer: ScheduledOptimizerSettings = setting(
        ScheduledOptimizerSettings, "Adam and its schedule"
    )


@dataclass(frozen=True, kw_only=True)
class CodebookSettings(RestorationSettings):
    """Settings of the stages that train the restoration network with the VQGAN's codebook."""

    codebook: float = setting(1.0, "weight of the source images' codebook loss", minimum=0)
    code_guidance: float = setting(
        0.0,
        "pull features also to the codes that the VQGAN chooses for the same image: a factor on "
        "the weight of each input's codebook loss, which stays; the paper has none, and at 0 the "
        "VQGAN's encoder doesn't run for it",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class BackboneSettings(Settings):
    """Files with torchvision's ImageNet weights; torch's cache replaces a file not named."""

    vgg16: str | None = setting(None, "file of VGG16, for the LPIPS training loss")
    vgg19: str | None = setting(None, "file of VGG19, for the VQGAN's semantic term")
    alexnet: str | None = setting(None, "file of AlexNet, for LPIPS in evaluations")
