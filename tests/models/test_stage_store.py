"""Stages that runs share: trained once, waited for, taken over, listed and pruned."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from local_ray import local_ray
from safetensors.torch import load_file
from tiny_training import bare_loop, metrics_of, settings

from qdmr_ray.cli import main as cli
from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.errors import QdmrError
from qdmr_ray.models.files import save_model
from qdmr_ray.models.stage_store import StageStore
from qdmr_ray.nets import VQGAN, NetworkSettings, SwinSettings
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claims
from qdmr_ray.train.ray_trainer import InThisProcess
from qdmr_ray.train.run import train_run

SMALL = NetworkSettings(
    widths=(4, 4),
    residual_blocks=1,
    codebook_size=4,
    code_dim=4,
    swin=SwinSettings(groups=1, blocks=1, heads=2, window=4),
)
DIGEST = "d" * 64
DAY = 86400


def save(place: Location) -> None:
    torch.manual_seed(0)
    final = place.join("vqgan", "final")
    save_model(final, VQGAN(SMALL), kind="vqgan", step=3, digest=DIGEST)


def provided(store: StageStore, train: Callable[[Location], None]) -> Location:
    return store.provide(
        "vqgan", DIGEST, {"l1": 1.0}, lambda place, _: train(place), lambda _: None
    )


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(open_location(tmp_path / "stages"))


def test_a_stage_is_trained_once_however_many_want_it_at_once(store: StageStore) -> None:
    trained: list[Location] = []

    def train(place: Location) -> None:
        trained.append(place)
        time.sleep(0.3)
        save(place)

    threads = [threading.Thread(target=provided, args=(store, train)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert [entry.state for entry in store.entries()] == ["finished"]


def test_training_that_fails_lets_the_next_one_try(store: StageStore) -> None:
    def fail(place: Location) -> None:
        raise QdmrError("no room")

    with pytest.raises(QdmrError, match="no room"):
        provided(store, fail)
    assert Claims(store.place("vqgan", DIGEST).join("claims")).holder() is None
    provided(store, save)
    assert [entry.state for entry in store.entries()] == ["finished"]


def made_days_ago(store: StageStore, days: float) -> None:
    """Dates every file so long ago, as the disk's clock would have."""
    then = time.time() - days * DAY
    for file in Path(store.root.path).rglob("*"):
        os.utime(file, (then, then))


def test_states_and_what_is_pruned(store: StageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_STALE", "0.2")
    place = provided(store, save)
    store.note_use(place, "runs/a")
    other = store.place("uda", "e" * 64)
    other.join("entry.json").write_bytes_atomic(
        json.dumps({"stage": "uda", "digest": "e" * 64, "settings": {}}).encode()
    )
    assert {e.stage: e.state for e in store.entries()} == {"vqgan": "finished", "uda": "unfinished"}

    def stages(**options: Any) -> list[str]:
        return [entry.stage for entry in store.prunable(**options)]

    assert stages(unused_days=1, unfinished=False) == []
    assert stages(unused_days=1, unfinished=True) == ["uda"]
    beat = {"owner": "x", "state": "working", "time": 5}
    other.join("claims", "000001.json").write_bytes_atomic(b'{"owner": "x"}')
    other.join("claims", "000001.beat").write_bytes_atomic(json.dumps(beat).encode())
    assert {e.stage: e.state for e in store.entries()}["uda"] == "training"
    # It has shown no sign of life while it was watched.
    assert stages(unused_days=0, unfinished=True) == ["uda", "vqgan"]
    made_days_ago(store, 2)
    assert stages(unused_days=1, unfinished=False) == ["uda", "vqgan"]
    assert stages(unused_days=3, unfinished=True) == ["uda"]
    store.note_use(place, "runs/b")
    assert stages(unused_days=1, unfinished=False) == ["uda"]


def test_the_commands_list_and_prune(
    store: StageStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = provided(store, save)
    store.note_use(place, "runs/a")

    def run(*command: str) -> str:
        monkeypatch.setattr("sys.argv", ["qdmr", "stages", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    path = str(store.root.local_path)
    assert "finished" in run("list", path)
    assert "0 stages" in run("prune", path)
    assert "1 stages" in run("prune", path, "--unused-days", "0")
    assert place.exists()
    run("prune", path, "--unused-days", "0", "--yes")
    assert not place.exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_runs_share_what_they_have_in_common(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Two UDA settings, one VQGAN; and what a bare loop makes of them."""
    shared = tmp_path / "stages"

    def trained(name: str, weight: float) -> tuple[Path, Experiment]:
        values = settings(tiny_dataset, name=name, run=["vqgan", "uda"])
        values["scaling"] |= {"workers": 1}
        values["stages"]["uda"]["target_codebook"] = weight
        experiment = experiment_from_dict(values)
        storage = str(tmp_path / "runs")
        launch = InThisProcess(sharing=1)
        train_run(experiment, storage=storage, store=str(shared), launch=launch, say=str)
        return tmp_path / "runs" / name, experiment

    def result(run: Path, stage: str) -> dict[str, torch.Tensor]:
        return load_file(run / stage / "final" / "model.safetensors")

    first, _ = trained("first", 0.1)
    second, experiment = trained("second", 0.2)
    entries = list(StageStore(open_location(shared)).entries())
    assert sorted(entry.stage for entry in entries) == ["uda", "uda", "vqgan"]
    for stage in ("vqgan", "uda"):
        *_, expected = bare_loop(experiment, stage, second, workers=1)
        found = result(second, stage)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert [m["iteration"] for m in metrics_of(second, stage)] == [1, 2, 3, 4]
        assert (second / stage / "pictures" / "samples.png").is_file()
        assert list((second / "tensorboard" / stage).iterdir())
    one, other = result(first, "uda"), result(second, "uda")
    assert any(not torch.equal(one[name], other[name]) for name in one)
    # Both are in the store now: a third run trains nothing, and has the very same lines.
    third, _ = trained("third", 0.2)
    for stage in ("vqgan", "uda"):
        lines = (run / stage / "metrics.jsonl" for run in (second, third))
        assert len({file.read_bytes() for file in lines}) == 1
