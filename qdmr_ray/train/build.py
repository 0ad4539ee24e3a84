"""A worker's stage: the same weights on every rank, its share of the batch, gradients exchanged."""

import zlib
from collections.abc import Mapping

import torch

from qdmr_ray.config import Experiment
from qdmr_ray.models.files import load_model
from qdmr_ray.stages import STAGES, Components, Stage, build_stage
from qdmr_ray.stages.arithmetic import GIGA, matrix_rate, needed_flop
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


def pace_at_peak(name: str, experiment: Experiment, host: Host) -> float | None:
    """Returns the samples per second of all workers if their GPUs did what the stage ``name`` needs
    by the method at the rate of a large matrix product, which is measured here; the measured pace
    over it is the model FLOPs utilisation (MFU, Chowdhery et al., "PaLM", 2022). Returns None where
    that is unknown: on a CPU, which other processes use too, so that a rate measured once is none
    of its own; and where a stage or network from outside can't be counted."""
    if host.device.type != "cuda":
        return None
    settings = experiment.stage(name)
    sizes = Components(network=experiment.network, discriminator=experiment.discriminator)
    try:
        flop = needed_flop(STAGES[name], settings, sizes, settings.crop)
    except RuntimeError:
        # PyTorch's, where a network looks at values, which there are none of.
        return None
    if not flop:
        return None
    rate = GIGA * matrix_rate(host.device, experiment.compute)
    # The matrices are as large as a network, and are not needed again.
    torch.cuda.empty_cache()
    return host.world_size * rate / flop
