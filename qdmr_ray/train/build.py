"""A worker's stage: the same weights on every rank, its share of the batch, gradients exchanged."""

import zlib
from collections.abc import Mapping

import torch

from qdmr_ray.config import Experiment
from qdmr_ray.models.files import load_model
from qdmr_ray.stages import Components, Stage, build_stage
from qdmr_ray.train.batches import share_of_rank
from qdmr_ray.train.worker_context import Host


def built_stage(name: str, needs: Mapping[str, str], experiment: Experiment, host: Host) -> Stage:
    """Returns the stage ``name`` on the device of ``host``, ready for its first step. ``needs``
    maps each stage that it starts from to the place of that stage's result."""
    # The same weights on every rank and after every restart; each stage has its own.
    torch.manual_seed(experiment.seed + zlib.crc32(name.encode()))
    components = Components(
        network=experiment.network,
        discriminator=experiment.discriminator,
        backbones=experiment.weights,
        trained={n: load_model(experiment.open(uri)).network for n, uri in needs.items()},
    )
    settings = experiment.stage(name)
    stage = build_stage(name, settings, components)
    stage.to(host.device, compute=experiment.compute)
    # The batch is shared by all workers, however many are left of them.
    stage.share = share_of_rank(experiment, name, rank=host.rank, world_size=host.world_size)
    if host.world_size > 1:
        stage.join_workers()
    return stage
