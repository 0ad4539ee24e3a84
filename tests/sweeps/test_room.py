"""How many trials run at the same time follows from the cluster's CPUs and GPUs."""

import math
from typing import Any

import pytest

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import SettingsError
from qdmr_ray.sweeps.run import _room

# A trial takes 2 CPUs with both loading tasks of each worker, and 1.5 with a single one.
WHOLE = {"workers": 1, "cpus_per_worker": 1.0}


def room(resources: dict[str, float], *, gpu: bool = False, **scaling: Any) -> int:
    experiment = experiment_from_dict({"scaling": {**WHOLE, **scaling}})
    return _room(experiment, resources, gpu=gpu, alone=experiment.scaling.workers == 1)


@pytest.mark.parametrize(("cpus", "trials"), [(1.5, 1), (2, 1), (3.9, 1), (4, 2), (16, 8)])
def test_as_many_trials_run_as_find_cpus_for_all_their_loading(cpus: float, trials: int) -> None:
    assert room({"CPU": cpus}) == trials


def test_a_trial_that_waits_for_its_workers_takes_a_little() -> None:
    # Two workers, one loading task, and the trial's own process.
    assert room({"CPU": 2.6}, workers=2) == 1
    with pytest.raises(SettingsError, match=r"a trial needs 2\.6 CPUs, and Ray has 2\.5"):
        room({"CPU": 2.5}, workers=2)


def test_gpus_bound_the_trials_too() -> None:
    assert room({"CPU": 64, "GPU": 3}, gpu=True, gpus_per_worker=1) == 3
    assert room({"CPU": 64, "GPU": 3}, gpu=False) == 32


def test_a_cluster_that_grows_is_told_how_many() -> None:
    with pytest.raises(SettingsError, match="concurrent is not set"):
        room({"CPU": math.inf})
