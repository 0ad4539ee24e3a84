"""Two commands that train one run, as two people on one cluster may start them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_ray import local_ray
from tiny_training import metrics_of, settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location
from qdmr_ray.storage.claims import Claims
from qdmr_ray.train.ray_trainer import InThisProcess
from qdmr_ray.train.run import train_run


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_second_command_waits_for_the_first(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    plain = settings(tiny_dataset, run=["source_only"])
    plain["scaling"]["workers"] = 1
    said: list[str] = []
    claim = Claims(open_location(tmp_path / "run" / "claims")).acquire(lambda: False, said.append)
    assert claim is not None
    second = threading.Thread(
        target=train_run,
        args=(experiment_from_dict(plain),),
        kwargs={
            "storage": str(tmp_path),
            "launch": InThisProcess(sharing=1),
            "say": said.append,
        },
    )
    second.start()
    end = time.monotonic() + 300
    while not said and time.monotonic() < end:
        time.sleep(0.1)
    assert "waiting for process" in said[0]
    assert "who trains it" in said[0]
    assert not (tmp_path / "run" / "source_only").exists()
    with claim:
        pass
    second.join(400)
    lines = metrics_of(tmp_path / "run", "source_only")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_second_command_does_not_go_on_with_other_settings(
    cluster: None, tiny_dataset: Path, tmp_path: Path
) -> None:
    plain = settings(tiny_dataset, run=["source_only"])
    plain["scaling"]["workers"] = 1
    launch = InThisProcess(sharing=1)
    claim = Claims(open_location(tmp_path / "run" / "claims")).acquire(lambda: False, print)
    assert claim is not None
    failures: list[Exception] = []

    def second() -> None:
        other = experiment_from_dict(plain | {"seed": 4})
        try:
            train_run(other, storage=str(tmp_path), launch=launch, say=lambda _: waiting.set())
        except QdmrError as error:
            failures.append(error)

    waiting = threading.Event()
    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.wait(300)
    # What the first command has done meanwhile.
    begun = tmp_path / "run" / "source_only" / "begun.json"
    begun.parent.mkdir()
    begun.write_text('{"digest": "of other settings"}')
    with claim:
        pass
    thread.join(400)
    (failure,) = failures
    assert "stage source_only was begun with other settings or data" in str(failure)
