"""The driver: checks an experiment, then trains its stages one after the other with Ray Train.

    run = train_run(load_experiment(Path("experiments/demo.yaml")), storage="runs")

A second call with the same name and storage resumes the run: finished stages are kept, and an
interrupted one goes on from its newest checkpoint.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from qdmr_ray.config import Experiment, dump_experiment, stage_digest
from qdmr_ray.data.format.manifest import Manifest, read_manifest
from qdmr_ray.data.format.verify import check_complete
from qdmr_ray.data.streaming.stream import InProcessStream
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.models import layout
from qdmr_ray.models.documents import Begun, Environment, Notes, read_metrics
from qdmr_ray.models.files import IMPORTED, network_settings, read_description
from qdmr_ray.models.stage_store import CLAIMS_FOLDER, StageStore, copy_stage
from qdmr_ray.nets.weights import find_backbone_weights
from qdmr_ray.parsing import flat, yaml_mapping
from qdmr_ray.ray_cluster import check_cpus, ensure_ray, uses_gpu
from qdmr_ray.stages import STAGES
from qdmr_ray.stages.components import BACKBONE_OF
from qdmr_ray.storage import Location
from qdmr_ray.storage.claims import Claim, Claims
from qdmr_ray.train.batches import crop_stream, sets_of
from qdmr_ray.train.loop import Task
from qdmr_ray.train.ray_trainer import Launch, with_workers
from qdmr_ray.train.validation import validation_names
from qdmr_ray.train.worker_context import Watch
from qdmr_ray.version import running_code


def train_run(
    experiment: Experiment,
    *,
    storage: str,
    stages: Sequence[str] | None = None,
    store: str | None = None,
    launch: Launch = with_workers,
    watch: Watch | None = None,
    label: str | None = None,
    say: Callable[[str], None] = print,
) -> Location:
    """Trains ``stages`` (all of ``experiment.run`` by default) and returns the run folder.

    With ``store``, a folder or ``s3://…`` that runs share, a stage that any run has trained is
    copied from there, and others are trained there and copied. ``launch`` trains a stage. ``watch``
    is called with every line of the log, those of stages trained elsewhere included, and may
    receive a line twice. Prometheus knows the run by ``label``, its name by default. Everything
    that can be checked is checked before a worker starts.

    Raises:
        QdmrError: data, weights, an earlier run of the same name, the cluster or training itself.
    """
    names = list(experiment.run if stages is None else stages)
    if unknown := [name for name in names if name not in experiment.run]:
        known = ", ".join(experiment.run)
        raise SettingsError(f"--stage {unknown[0]}: the experiment's stages are {known}")
    run = experiment.open(storage).join(experiment.name)
    experiment, manifest = check_run(experiment, names)
    digests = stage_digests(experiment, run, manifest.digest)
    _check_earlier_run(experiment, run, names, digests)
    ensure_ray(experiment.outside_modules)
    check_cpus(experiment)
    gpu = uses_gpu(experiment)
    claims = Claims(run.join(CLAIMS_FOLDER))
    # Two commands of one name, perhaps of two people, would write into each other's checkpoints.
    claim = claims.acquire(lambda: False, lambda whom: say(f"{run.uri}: {whom}, who trains it"))
    assert claim is not None
    with claim:
        # The previous holder of the claim may have begun this run with other settings meanwhile.
        _check_earlier_run(experiment, run, names, digests)
        _write_run_files(experiment, run, gpu)
        start = partial(launch, gpu=gpu, watch=watch)
        stages_of_run = _Stages(experiment, run, digests, start, store, say, claim, label)
        for name in names:
            claim.check()
            stages_of_run.finish(name)
            if watch is not None:
                # Whichever run trained the stage.
                for line in read_metrics(run.join(name, layout.METRICS_FILE)):
                    watch(name, line.iteration, line.metrics)
    return run


@dataclass(frozen=True)
class _Stages:
    """The stages of one run, and the inputs of their training."""

    experiment: Experiment
    run: Location
    digests: Mapping[str, str]
    launch: Callable[[Experiment, Task], None]
    store: str | None
    say: Callable[[str], None]
    claim: Claim
    label: str | None

    def finish(self, name: str) -> None:
        """Puts the stage's result into the run folder, unless it is there already."""
        if _is_finished(self.run, name):
            self.say(f"{name}: finished before, kept")
            return
        if self.store is None:
            self._train(name, self.run, self.claim)
        else:
            self._take(name, self.store)
        self.say(f"{name}: {self.experiment.stage(name).iterations} iterations done")

    def _take(self, name: str, store_uri: str) -> None:
        """Copies the stage's result from the store, which trains it if no run has."""
        digest = self.digests[name]
        store = StageStore(self.experiment.open(store_uri))
        begun = Begun(digest=digest, store=store.place(name, digest).uri)
        begun.write(self.run.join(name, layout.BEGUN_FILE))
        settings = asdict(self.experiment.stage(name))
        # Before the result is looked for: one that is used isn't pruned meanwhile.
        store.note_use(store.place(name, digest), self.run.uri)
        place = store.provide(name, digest, settings, partial(self._train, name), self.say)
        self.claim.check()
        copy_stage(place, self.run, name)

    def _train(self, name: str, root: Location, claim: Claim) -> None:
        """Trains into the run folder ``root``, which ``claim`` is on, starting from this run's
        earlier stages."""
        digest = self.digests[name]
        Begun(digest=digest).write(root.join(name, layout.BEGUN_FILE))
        needs = {n: self.run.join(n, layout.FINAL_FOLDER).uri for n in STAGES[name].needs}
        values = self.experiment.to_dict()
        task = Task(values, name, root.uri, digest, needs, claim=claim.id, label=self.label)
        self.launch(self.experiment, task)
        if not _is_finished(root, name):
            uri = root.join(name).uri
            raise QdmrError(f"{uri}: training ended without a result; see Ray's logs")


def check_run(
    experiment: Experiment, stages: Sequence[str] | None = None
) -> tuple[Experiment, Manifest]:
    """Checks all that ``stages`` need before anything starts: data, crops and weights. Returns the
    experiment with absolute paths, and the data's manifest; raises QdmrError for anything that is
    missing or doesn't fit."""
    names = list(experiment.run if stages is None else stages)
    if not experiment.data.path:
        raise SettingsError("data.path is not set: name a packed dataset (see qdmr data pack)")
    data = experiment.open(experiment.data.path)
    manifest = read_manifest(data)
    # A worker's working directory is Ray's own, where a relative path would not be found.
    named = {name: file for name, file in asdict(experiment.weights).items() if file is not None}
    weights = {name: str(Path(file).expanduser().resolve()) for name, file in named.items()}
    experiment = replace(
        experiment,
        data=replace(experiment.data, path=data.uri),
        weights=replace(experiment.weights, **weights),
    )
    check_complete(data, manifest, sets_of(*names))
    for name in names:
        # The constructor refuses a missing set and a crop larger than an image.
        crop_stream(InProcessStream, experiment, name)
    if experiment.logging.validation_interval is not None:
        validation_names(experiment)
    for name in names:
        STAGES[name].check_backbones(experiment.stage(name), experiment.network)
        for term, backbone in STAGES[name].backbones.items():
            if getattr(experiment.stage(name), term):
                file = getattr(experiment.weights, backbone)
                find_backbone_weights(BACKBONE_OF[backbone], file)
    return experiment, manifest


def stage_digests(experiment: Experiment, run: Location, manifest_digest: str) -> dict[str, str]:
    """Returns the digest of each stage's settings and data; imported stages have their own."""
    found = {name: read_description(run.join(name, layout.FINAL_FOLDER)) for name in STAGES}
    digests = {name: description["digest"] for name, description in found.items() if description}
    imported = {name: digest for name, digest in digests.items() if digest.startswith(IMPORTED)}
    return {n: stage_digest(experiment, n, manifest_digest, imported) for n in STAGES}


def _check_earlier_run(
    experiment: Experiment, run: Location, names: Sequence[str], digests: dict[str, str]
) -> None:
    needed = {n for name in names for n in STAGES[name].needs}
    for name in [*needed, *names]:
        found = read_description(run.join(name, layout.FINAL_FOLDER))
        if found is None and name in needed and name not in names:
            raise QdmrError(f"{run.uri}: stage {name} is not trained yet; train it first")
        if found is not None and found["digest"].startswith(IMPORTED):
            # The training settings of weights from elsewhere are unknown here.
            _check_imported(run.join(name, layout.FINAL_FOLDER), found, experiment)
            continue
        begun = Begun.read_if_there(run.join(name, layout.BEGUN_FILE))
        digest = found["digest"] if found else begun and begun.digest
        if digest is not None and digest != digests[name]:
            changed = _first_difference(experiment, run)
            raise QdmrError(
                f"{run.uri}: stage {name} was begun with other settings or data{changed}; choose "
                "another --name, or take the change back"
            )


def _check_imported(folder: Location, found: dict[str, Any], experiment: Experiment) -> None:
    theirs, ours = network_settings(found), experiment.network
    for size in ("widths", "residual_blocks", "codebook_size", "code_dim"):
        if hasattr(ours, size) and getattr(theirs, size) != getattr(ours, size):
            raise SettingsError(
                f"network.{size} is {getattr(ours, size)}, and the imported {folder.uri} has "
                f"{getattr(theirs, size)}: set it to the same"
            )


def _first_difference(experiment: Experiment, run: Location) -> str:
    file = run.join(layout.CONFIG_FILE)
    before = flat(yaml_mapping(file.read_bytes(), file.uri)) if file.exists() else {}
    for name, now in flat(experiment.to_dict()).items() if before else ():
        if before.get(name) != now and name != "name":
            return f" ({name} was {before.get(name)!r}, now {now!r})"
    return ""


def _write_run_files(experiment: Experiment, run: Location, gpu: bool) -> None:
    run.join(layout.CONFIG_FILE).write_bytes_atomic(dump_experiment(experiment).encode())
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    Environment(
        **running_code().origin(),
        qdmr_ray=str(running_code()),
        python=platform.python_version(),
        torch=torch.__version__,
        ray=ray.__version__,
        platform=platform.platform(),
        cluster=f"{len(ray.nodes())} nodes, {cpus:g} CPUs, {gpus:g} GPUs",
        device="GPU" if gpu else "CPU",
        workers=str(experiment.scaling.workers),
    ).write(run.join(layout.ENVIRONMENT_FILE))
    notes = list(experiment.notes)
    # A sentence for each term of the method that a stage of this run goes without.
    for term in ("lpips", "semantic", "gan", "feature_gan"):
        stages = [n for n in experiment.run if getattr(experiment.stage(n), term, None) == 0]
        if stages:
            notes.append(f"Switched off: the {term} term in {', '.join(stages)}.")
    Notes(notes=tuple(notes)).write(run.join(layout.NOTES_FILE))


def _is_finished(run: Location, stage: str) -> bool:
    return read_description(run.join(stage, layout.FINAL_FOLDER)) is not None
