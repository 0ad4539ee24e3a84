"""Experiments: one YAML file of typed settings, `--set` overrides, and the file saved with a run.

    experiment = load_experiment(Path("experiments/demo.yaml"), ["stages.vqgan.iterations=100"])

Every section is a dataclass beside the code that it configures; this module combines them, reads
them, and names in one line what is wrong with a file.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from qdmr_ray.data.streaming.stream import DataSettings
from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import DiscriminatorSettings, NetworkSettings, RestorationNetworkSettings
from qdmr_ray.nets.registry import module_of, restoration_class
from qdmr_ray.nets.settings import DEFAULT_KIND
from qdmr_ray.parsing import apply_override, parse_settings, read_yaml, yaml_mapping
from qdmr_ray.settings import Settings, setting
from qdmr_ray.stages import (
    STAGES,
    BackboneSettings,
    ComputeSettings,
    Stage,
    StageSettings,
    load_plugins,
)
from qdmr_ray.stages.compute import FLOAT32
from qdmr_ray.storage import Location, open_location
from qdmr_ray.version import code_version

# Raised when a change of code makes the same settings train another result.
METHOD_VERSION = 1
# Settings that METHOD_VERSION's first runs lacked: section of the digest, name, default.
_LATER_SETTINGS = (
    ("network", "fusion", True),
    ("network", "kind", DEFAULT_KIND),
    ("network", "tile", None),
    ("settings", "s2t", True),
    ("settings", "code_guidance", 0.0),
    ("settings", "code_decay", None),
)
# The key of the code's version in a saved config.yaml.
VERSION_KEY = "code_version"
# The actions for a run that goes wrong.
STOP, WARN, OFF = "stop", "warn", "off"
ACTIONS = (STOP, WARN, OFF)
# A run is a folder of this name in its storage, and nowhere else.
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NOT_A_NAME = "must be letters, digits, '.', '_' and '-', since it names the {}'s folder"


@dataclass(frozen=True, kw_only=True)
class StagesSettings(Settings):
    """One section per training stage, a field for each of ``STAGES``; only those named in ``run``
    are trained. :func:`experiment_type` makes the subclass with the fields."""


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """Settings of where training runs."""

    workers: int = setting(
        1, "training workers; the batch is the stage's batch_size times this", minimum=1
    )
    min_workers: int | None = setting(
        None,
        "go on with as few workers when nodes are lost, and with more when they come back; batch "
        "and learning rate stay, since fewer workers take more samples each, in more parts; when "
        "not set, training waits for all",
        minimum=1,
    )
    resize_interval: float = setting(
        600.0,
        "with min_workers: how often to look for room for more workers, which costs a restart, but "
        "no iteration, since the workers save a checkpoint first; Ray finds room only where "
        "cpus_per_worker is a whole number",
        unit="seconds",
        above=0,
    )
    node_wait: float = setting(
        3600.0, "longest wait for nodes that the workers fit on", unit="seconds", above=0
    )
    gpu: bool | None = setting(None, "train on GPUs; when not set, if the cluster has enough")
    gpus_per_worker: float = setting(
        1.0, "GPUs of each worker; 0.5 lets two share one", unit="GPUs", above=0, maximum=1
    )
    cpus_per_worker: float = setting(
        1.0, "CPUs that Ray reserves for each training worker", unit="CPUs", above=0
    )
    threads: int | None = setting(
        None, "PyTorch threads of a worker; when not set, its share of the CPUs", minimum=1
    )
    max_failures: int = setting(
        3, "times that training goes on from its checkpoint after losing a worker", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_workers is not None and self.min_workers > self.workers:
            raise SettingsError(
                f"scaling.min_workers={self.min_workers} is more than scaling.workers="
                f"{self.workers}: lower it"
            )

    @property
    def fewest_workers(self) -> int:
        """The number of workers without which training doesn't go on."""
        return self.workers if self.min_workers is None else self.min_workers


@dataclass(frozen=True, kw_only=True)
class GuardSettings(Settings):
    """Settings of what is done about a run that goes wrong: stop it, warn, or nothing."""

    non_finite: str = setting(
        STOP,
        "a loss term that is infinite or not a number; weights that are so are never kept, unless "
        "this is off",
        choices=ACTIONS,
    )
    discriminator: str = setting(
        WARN, "a discriminator whose mean logit passes discriminator_logit", choices=ACTIONS
    )
    discriminator_logit: float = setting(100.0, "largest usual mean logit, either sign", above=0)
    codebook: str = setting(
        WARN, "a codebook whose perplexity falls below codebook_perplexity", choices=ACTIONS
    )
    codebook_perplexity: float = setting(
        1.5, "smallest usual perplexity of a batch's codes; 1 is a single code", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class LoggingSettings(Settings):
    """Settings of what training writes down, and how often."""

    log_interval: int = setting(100, "averages logged", unit="iterations", minimum=1)
    picture_interval: int = setting(5000, "example pictures made", unit="iterations", minimum=1)
    picture_count: int = setting(4, "samples in the example pictures", minimum=1)
    validation_interval: int | None = setting(
        None,
        "validation photographs restored and measured (evaluation.validation_share says which); "
        "when not set, never",
        unit="iterations",
        minimum=1,
    )
    checkpoint_interval: int = setting(5000, "checkpoints saved", unit="iterations", minimum=1)
    keep_checkpoints: int = setting(2, "newest checkpoints kept", minimum=1)
    best_metric: str | None = setting(
        None, "logged metric whose best checkpoint is kept too, such as source/l1"
    )
    best_mode: str = setting("min", "which value of best_metric is best", choices=("min", "max"))


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Settings of how the test set is judged."""

    border: int = setting(0, "pixels left out at each edge", unit="pixels", minimum=0)
    luma: bool = setting(False, "compare the Y channel (BT.601) instead of RGB")
    lpips: bool = setting(False, "also LPIPS-Alex; needs AlexNet's weights (weights.alexnet)")
    niqe: str | None = setting(
        None, "also NIQE, without ground truth too: file of its pristine parameters, .mat or .npz"
    )
    validation_share: float = setting(
        0.0,
        "share of the test photographs that training and sweeps are judged on, chosen by a hash "
        "of their names; evaluations leave them out",
        minimum=0,
        maximum=1,
    )
    validation_names: tuple[str, ...] = setting(
        (), "these instead of a share: names of test photographs, or patterns such as scene3_*"
    )
    source_lens: str | None = setting(
        None,
        "also the gap between the lenses: packed dataset whose test set holds the same photographs "
        "through the source lens, with the same names and ground truths",
    )
    sheets: bool = setting(True, "a comparison.png beside each image's pictures")
    workers: int | None = setting(
        None,
        "images restored at the same time; when not set, one on each GPU of the cluster, or where "
        "there is none, one on each node",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class Experiment(Settings):
    """Everything that determines a run."""

    name: str = setting("", "name of the run folder; --name replaces it")
    seed: int = setting(0, "of initial weights, sample order and crops", minimum=0)
    run: tuple[str, ...] = setting(("vqgan", "base"), "stages to train, in order")
    plugins: tuple[str, ...] = setting(
        (), "modules of your own that define stages, such as my_package.my_stage"
    )
    notes: tuple[str, ...] = setting((), "remarks that the report shows")
    data: DataSettings = setting(DataSettings, "the packed dataset")
    network: RestorationNetworkSettings = setting(NetworkSettings, "sizes of the networks")
    discriminator: DiscriminatorSettings = setting(
        DiscriminatorSettings, "sizes of the discriminators"
    )
    weights: BackboneSettings = setting(BackboneSettings, "ImageNet weights of frozen networks")
    stages: StagesSettings = setting(StagesSettings, "the training stages")
    compute: ComputeSettings = setting(ComputeSettings, "precision, layout, compilation, memory")
    scaling: ScalingSettings = setting(ScalingSettings, "workers, CPUs and GPUs")
    guard: GuardSettings = setting(GuardSettings, "what is done about a run that goes wrong")
    logging: LoggingSettings = setting(LoggingSettings, "logs, pictures and checkpoints")
    evaluation: EvaluationSettings = setting(EvaluationSettings, "the test set's metrics")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name and not RUN_NAME.fullmatch(self.name):
            raise SettingsError(f"name {NOT_A_NAME.format('run')}; it is {self.name!r}")
        if not self.run or len(set(self.run)) < len(self.run):
            raise SettingsError(f"run must name stages, each once; it is {list(self.run)}")
        for stage in self.run:
            self._check_stage(stage)

    def _check_stage(self, name: str) -> None:
        if name not in STAGES:
            raise SettingsError(
                f"run must be one of {', '.join(STAGES)}; it is {name!r} (plugins names the "
                "modules that define other stages)"
            )
        stage = STAGES[name]
        for needed in stage.needs:
            if needed not in self.run[: self.run.index(name)]:
                raise SettingsError(f"run has {name} without {needed} before it, which it needs")
        if stage.network_kinds is not None and self.network.kind not in stage.network_kinds:
            raise SettingsError(
                f"run has {name}, which trains networks of kind {', '.join(stage.network_kinds)}; "
                f"network.kind is {self.network.kind!r}: leave {name} out, or change the kind"
            )
        stage.check_sizes(self.stage(name), self.network)

    def stage(self, name: str) -> StageSettings:
        """Returns the settings of the stage ``name``."""
        return getattr(self.stages, name)

    @property
    def outside_modules(self) -> tuple[str, ...]:
        """The user's modules that define stages and the network, which workers import, too."""
        module = module_of(self.network.kind)
        return (*self.plugins, *([module] if module else []))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as YAML and JSON hold them."""
        own_type: Any = type(self)
        return _adapter(own_type).dump_python(self, mode="json")

    def open(self, uri: str) -> Location:
        """Returns the place at ``uri``, in the store that ``data.s3_endpoint`` names for S3's."""
        return open_location(uri, endpoint=self.data.s3_endpoint)

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the process that has read an experiment with plugins has its class.
        return experiment_from_dict, (self.to_dict(),)


def experiment_type(values: Mapping[str, Any] | None = None) -> type[Experiment]:
    """Returns the type of the experiment with these plain values: with the network that their
    ``network.kind`` names, and our stages and those of their ``plugins``. Each section is the
    dataclass that stage or network registers. Raises SettingsError where there is no such network
    or module."""
    network, plugins = (values or {}).get("network"), (values or {}).get("plugins")
    kind = network.get("kind") if isinstance(network, Mapping) else None
    # Values of another type are left to the parser, which names what is wrong with them.
    modules = plugins if isinstance(plugins, list | tuple) else ()
    load_plugins([module for module in modules if isinstance(module, str)])
    found: Any = restoration_class(kind if isinstance(kind, str) else DEFAULT_KIND)
    return _experiment_type(found.settings_type, tuple(STAGES.values()))


@cache
def _experiment_type(network: Any, stages: tuple[type[Stage], ...]) -> type[Experiment]:
    sections = [(s.name, s.settings_type, setting(s.settings_type, s.help)) for s in stages]
    stages_type = _dataclass(StagesSettings, sections)
    network_field = ("network", network, setting(network, "sizes of the networks"))
    stages_field = ("stages", stages_type, setting(stages_type, "the training stages"))
    return _dataclass(Experiment, [network_field, stages_field])


def _dataclass(base: type[Any], fields: list[tuple[str, type, Any]]) -> type[Any]:
    own = {"__module__": __name__, "__doc__": base.__doc__}
    return make_dataclass(
        base.__name__, fields, bases=(base,), frozen=True, kw_only=True, namespace=own
    )


@cache
def _adapter(experiment: Any) -> TypeAdapter[Experiment]:
    return TypeAdapter(experiment)


def load_experiment(
    path: Path | str, overrides: Sequence[str] = (), *, name: str | None = None
) -> Experiment:
    """Reads the experiment in a YAML file and applies ``a.b=value`` overrides.

    Raises:
        QdmrError: the file is missing or is no YAML.
        SettingsError: a setting is unknown, of the wrong type or out of range; named with file.
    """
    path = Path(path)
    values = read_yaml(path)
    for override in overrides:
        apply_override(values, override)
    values["name"] = name or values.get("name") or path.stem
    return experiment_from_dict(values, source=str(path))


def experiment_from_dict(values: Mapping[str, Any], *, source: str = "settings") -> Experiment:
    """Returns an experiment from plain values; raises SettingsError, which starts with ``source``,
    where a setting is unknown, of the wrong type or out of range."""
    # A saved config.yaml can be trained again.
    values = {name: value for name, value in values.items() if name != VERSION_KEY}
    try:
        settings: Any = experiment_type(values)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from error
    return parse_settings(_adapter(settings), values, source)


def stage_digest(
    experiment: Experiment, stage: str, data: str, imported: Mapping[str, str] | None = None
) -> str:
    """Returns a digest of all that determines a stage's result, its needed stages and the digest
    of its ``data`` included.

    Settings that change only where or how visibly it trains (logging, Ray, paths) are left out.
    ``imported`` holds the digests of stages whose weights come from elsewhere.
    """
    if stage in (imported or {}):
        return (imported or {})[stage]
    values, kind = experiment.to_dict(), STAGES[stage]
    network = {name: v for name, v in values["network"].items() if name not in kind.unused_sizes}
    determining: dict[str, Any] = {
        "method": METHOD_VERSION,
        "stage": stage,
        "settings": values["stages"][stage],
        "network": network,
        "discriminator": values["discriminator"],
        "dtype": experiment.compute.dtype,
        "seed": experiment.seed,
        "workers": experiment.scaling.workers,
        "data": data,
        "needs": {name: stage_digest(experiment, name, data, imported) for name in kind.needs},
    }
    network_version = restoration_class(experiment.network.kind).version
    versions = {"stage": kind.version, "network": network_version}
    # One worker exchanges no gradients.
    if experiment.scaling.workers > 1 and experiment.compute.gradients != FLOAT32:
        determining["gradients"] = experiment.compute.gradients
    # Version 1 is left out, so that digests from before there were versions stay valid.
    if changed := {name: version for name, version in versions.items() if version != 1}:
        determining["versions"] = changed
    # Later settings with their default must not change earlier stages' digests.
    for section, name, default in _LATER_SETTINGS:
        if determining[section].get(name, default) == default:
            determining[section].pop(name, None)
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()


def dump_experiment(experiment: Experiment) -> str:
    """Returns the YAML saved with a run: every setting in force, with defaults, and the version."""
    values = {VERSION_KEY: code_version(), **experiment.to_dict()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def experiment_of_run(text: str, source: str) -> Experiment:
    """Returns the experiment that :func:`dump_experiment` wrote; raises QdmrError where the text is
    no YAML, otherwise as :func:`experiment_from_dict`."""
    return experiment_from_dict(yaml_mapping(text, source), source=source)
