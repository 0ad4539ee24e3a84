"""Checks that a stage's crops have a size that its networks take. A worker would find out, too, but
only once it runs, and be started again."""

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import UNetDiscriminator
from qdmr_ray.nets.weights import BACKBONES
from qdmr_ray.stages.settings import StageSettings


def check_crop(
    stage: str, settings: StageSettings, multiple: int, why: str, term: str | None = None
) -> None:
    """Raises SettingsError where the crop is no multiple of ``multiple`` pixels; ``why`` says what
    needs that, and ``term`` names the setting that switches it off."""
    if settings.crop % multiple:
        instead = f": take another, or set stages.{stage}.{term}=0" if term else ""
        raise SettingsError(
            f"stages.{stage}.crop must be a multiple of {multiple} pixels ({why}); it is "
            f"{settings.crop}{instead}"
        )


def check_image_terms(stage: str, settings: StageSettings) -> None:
    """Raises SettingsError where the image discriminator or LPIPS doesn't take the crop."""
    if settings.gan:
        why = "the image discriminator's downsampling"
        check_crop(stage, settings, UNetDiscriminator.MULTIPLE, why, "gan")
    vgg = BACKBONES["vgg"]
    if settings.lpips and settings.crop < vgg.smallest:
        raise SettingsError(
            f"stages.{stage}.crop must be at least {vgg.smallest} pixels ({vgg.model} of LPIPS "
            f"sees no smaller images); it is {settings.crop}: take a larger one, or set "
            f"stages.{stage}.lpips=0"
        )
