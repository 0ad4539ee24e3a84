"""The training stages in pure PyTorch: each has its networks, its losses and one ``step(batch)``.

>>> from qdmr_ray.stages import Components, build_stage
>>> stage = build_stage("vqgan", VQGANSettings(lpips=0, semantic=0), Components()).to("cpu")
>>> losses = stage.step({"source": source, "target": target})

``STAGES`` holds by name the stages in this folder and those that :func:`load_plugins` has added.
"""

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets.registry import classes_of, import_outside
from qdmr_ray.stages.base import BaseSettings, BaseStage
from qdmr_ray.stages.batch_share import Share, share_of
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.compute import ComputeSettings, flush_denormals
from qdmr_ray.stages.settings import BackboneSettings, OptimizerSettings, StageSettings
from qdmr_ray.stages.source_only import SourceOnlySettings, SourceOnlyStage
from qdmr_ray.stages.stage import Stage
from qdmr_ray.stages.uda import UDASettings, UDAStage
from qdmr_ray.stages.vqgan import VQGANSettings, VQGANStage

STAGES: dict[str, type[Stage]] = {}


def build_stage(name: str, settings: StageSettings, components: Components) -> Stage:
    """Builds the stage called ``name``; its ``.to(device)`` must precede its first step. From now
    on the calling thread flushes denormal numbers to zero (``flush_denormals``)."""
    flush_denormals()
    return STAGES[name](settings, components)  # type: ignore[call-arg, arg-type]


def load_plugins(modules: Sequence[str]) -> None:
    """Imports the user's modules and adds their stages to ``STAGES``; raises SettingsError where a
    module can't be imported, defines no stage, or one of another stage's name."""
    for name in modules:
        found = _stages_of(import_outside(name))
        if not found:
            raise SettingsError(
                f"plugins: {name} defines no stage: a subclass of qdmr_ray.stages.Stage with a name"
            )
        for stage in found:
            register(stage)


def register(stage: type[Stage]) -> None:
    """Adds ``stage`` to ``STAGES``. Where the class itself sets no ``label``, ``kind`` or ``help``,
    these follow from its name, ``help`` from its docstring's first line. Raises SettingsError where
    another stage has its name, or the name can't stand in a settings file."""
    other = STAGES.get(stage.name, stage)
    if (other.__module__, other.__qualname__) != (stage.__module__, stage.__qualname__):
        raise SettingsError(
            f"{stage.__module__}: a stage called {stage.name!r} is there already, in "
            f"{other.__module__}; rename one"
        )
    if not stage.name.isidentifier():
        raise SettingsError(
            f"{stage.__module__}: the stage's name {stage.name!r} can't stand in a settings file; "
            "use letters, digits and '_'"
        )
    own = vars(stage)
    stage.label = own.get("label") or stage.name
    stage.kind = own.get("kind") or stage.name
    stage.help = own.get("help") or (stage.__doc__ or stage.name).strip().splitlines()[0]
    STAGES[stage.name] = stage


def _stages_of(module: ModuleType) -> list[type[Stage]]:
    """Returns the stages that a module defines; a class without a name only helps others."""
    return [stage for stage in classes_of(module, Stage) if "name" in vars(stage)]


def _register_own() -> None:
    modules = [import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [stage for module in modules for stage in _stages_of(module)]
    needed = {name for stage in found for name in stage.needs}
    # Sorted so that they can be trained in this order: stages that others start from come first.
    for stage in sorted(found, key=lambda s: (len(s.needs), s.name not in needed, s.name)):
        register(stage)


_register_own()
