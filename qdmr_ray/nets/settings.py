"""Sizes of the networks; the defaults are the paper's."""

from dataclasses import dataclass

from qdmr_ray.errors import SettingsError
from qdmr_ray.settings import Settings, setting

DEFAULT_KIND = "qdmr"


@dataclass(frozen=True, kw_only=True)
class SwinSettings(Settings):
    """The Swin bottleneck between encoder and decoder."""

    groups: int = setting(4, "residual Swin groups", minimum=1)
    blocks: int = setting(6, "Swin blocks per group; every second one is shifted", minimum=1)
    heads: int = setting(8, "attention heads", minimum=1)
    window: int = setting(8, "side of an attention window", unit="feature pixels", minimum=2)
    mlp_ratio: float = setting(4.0, "hidden width of the MLP over its input width", above=0)


@dataclass(frozen=True, kw_only=True)
class RestorationNetworkSettings(Settings):
    """The settings that the section ``network`` has for every kind of network."""

    kind: str = setting(
        DEFAULT_KIND, "restoration network; one of your own is named package.module:Class"
    )

    @property
    def multiple(self) -> int:
        """Height and width of an input image must be multiples of this, in pixels."""
        return 1


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(RestorationNetworkSettings):
    """Sizes of QDMR, and of the VQGAN that it takes its codebook from."""

    widths: tuple[int, ...] = setting(
        (64, 128, 256, 256), "channels at full size, then after each halving", minimum=1
    )
    residual_blocks: int = setting(2, "residual blocks per level", minimum=1)
    codebook_size: int = setting(1024, "number of codes K", minimum=2)
    code_dim: int = setting(512, "length of a code", minimum=1)
    commitment: float = setting(0.25, "weight beta of the commitment loss", minimum=0)
    fusion: bool = setting(
        True,
        "modulate the features by the codebook's (SFT); off, an ablation: the codebook acts only "
        "through its loss",
    )
    swin: SwinSettings = setting(SwinSettings, "the Swin bottleneck")
    global_residual: bool = setting(
        False,
        "extension: add the input image to the restoration network's output, whose last "
        "convolution then starts at zero (the paper has no such path)",
    )
    tile: int | None = setting(
        None,
        "extension: restore photographs in tiles of this side, as large as the crops of training; "
        "group normalisation then sees as much of them as it did there (null: whole photographs, "
        "as the paper)",
        unit="pixels",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) < 2:
            raise SettingsError(f"widths needs at least two values; it is {list(self.widths)}")
        if self.feature_width % self.swin.heads:
            raise SettingsError(
                f"widths must end in a multiple of swin.heads ({self.swin.heads}); it is "
                f"{list(self.widths)}"
            )
        if self.tile is not None and self.tile % self.multiple:
            raise SettingsError(
                f"tile must be a multiple of {self.multiple}, which widths and swin.window make "
                f"of it; it is {self.tile}"
            )

    @property
    def feature_width(self) -> int:
        """Channels of the features at the coarsest level."""
        return self.widths[-1]

    @property
    def downsampling(self) -> int:
        """Image pixels per feature pixel, along one axis."""
        return 2 ** (len(self.widths) - 1)

    @property
    def multiple(self) -> int:
        """Height and width of an input image must be multiples of this, in pixels."""
        return self.downsampling * self.swin.window


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSettings(Settings):
    """Size of the U-Net discriminators."""

    width: int = setting(64, "channels at full size; doubled at each of three halvings", minimum=1)
