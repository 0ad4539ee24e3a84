"""Workers that can't reach the data or the storage: an error with the address, and no hang."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from faulty_store import FaultyStore
from local_ray import local_ray
from tiny_training import settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location
from qdmr_ray.train import ray_trainer
from qdmr_ray.train.run import train_run

# Workers that hang would reach this limit; on an idle machine it takes a minute.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.long
@pytest.mark.parametrize("missing", ["data", "storage"])
def test_the_error_names_the_address_and_the_reason(
    faulty_store: FaultyStore,
    tiny_dataset: Path,
    tmp_path: Path,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = faulty_store.bucket
    values = settings(tiny_dataset, run=["source_only"])
    # Ends at once whatever the number: starting again would not help.
    values["scaling"] |= {"workers": 1, "max_failures": 3}
    storage = str(tmp_path / "runs")
    if missing == "data":
        data = open_location(f"s3://{bucket}/data")
        for file in tiny_dataset.iterdir():
            data.join(file.name).write_bytes_atomic(file.read_bytes())
        values["data"] |= {"path": data.uri, "cache_bytes": 0}
    else:
        storage = f"s3://{bucket}/runs"

    fit = ray_trainer._fit

    def beyond_a_wall(*arguments: Any) -> None:
        """What the command reaches, its workers don't."""
        faulty_store.stop_listening()
        try:
            fit(*arguments)
        finally:
            faulty_store.listen()

    monkeypatch.setattr(ray_trainer, "_fit", beyond_a_wall)

    address = faulty_store.environment["AWS_ENDPOINT_URL"]
    with local_ray():
        began = time.monotonic()
        with pytest.raises(QdmrError) as caught:
            train_run(
                experiment_from_dict(values),
                storage=storage,
                launch=ray_trainer.with_workers,
                say=lambda _: None,
            )
        print(f"told after {time.monotonic() - began:.1f} s: {caught.value}")
    text = str(caught.value)
    assert text.startswith(f"stage source_only failed: s3://{bucket}/")
    assert address in text
    assert "onnect" in text
    assert "\n" not in text
