"""Of two evaluations into one folder the second is refused; none mixes its rows with another's."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile.datasets import packed_noise
from hostile.limits import files_below, refused

import qdmr_ray.evaluate.evaluate as evaluate_module
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.results import Evaluation, Judged
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claim, Claims

Evaluate = Callable[[], Evaluation]
HOLDER = b'{"owner": "process 7 on another-machine"}'


@pytest.fixture
def places(tmp_path: Path, tiny_network: NetworkSettings) -> tuple[str, str, str]:
    """A model, a dataset of three photographs, and where the evaluation goes."""
    model = open_location(tmp_path / "base" / "final")
    save_model(model, QDMR(tiny_network), kind="qdmr_base", step=1, digest="d")
    return model.uri, str(packed_noise(tmp_path)), str(tmp_path / "out")


@pytest.fixture
def evaluate(places: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Evaluates without Ray, and without a network."""

    def judge(task: Any, rows: list[dict[str, Any]], spread: Any) -> Iterator[dict[str, Any]]:
        for row in rows:
            judged = Judged(index=row["index"], name=row["name"], values={"input": {"psnr": 2.0}})
            yield {**row, "judged": judged.to_json(indent=None), "failure": ""}

    monkeypatch.setattr(evaluate_module, "_judged", judge)
    monkeypatch.setattr(evaluate_module, "ensure_ray", lambda _: None)
    monkeypatch.setattr(evaluate_module.ray, "nodes", list)
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_STALE", "0.4")
    model, data, out = places
    return lambda: evaluate_run(open_location(model), data=data, out=out)


def claims_of(out: str) -> Location:
    return open_location(out).join("evaluation.claims")


def test_an_evaluation_in_this_process_is_named(evaluate: Evaluate, places: Any) -> None:
    here = f"process {os.getpid()} on {socket.gethostname()}"
    with acquired(claims_of(places[2])):
        before = files_below(Path(places[2]))
        refused(evaluate, match=rf"out: {here} is evaluating into this folder; let it .* --out")
        assert files_below(Path(places[2])) == before
    assert evaluate().images == 3


def test_one_on_another_machine_is_known_by_its_signs_of_life(
    evaluate: Evaluate, places: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a busy machine keeps a thread waiting.
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_STALE", "60")
    folder, over = claims_of(places[2]), threading.Event()
    folder.join("000001.json").write_bytes_atomic(HOLDER)

    def beat() -> None:
        count = 0
        while not over.wait(0.05):
            count += 1
            # Its clock stands still in 1970.
            folder.join("000001.beat").write_bytes_atomic(b'{"time": 0, "count": %d}' % count)

    other = threading.Thread(target=beat)
    other.start()
    try:
        told = r"out: process 7 on another-machine is evaluating into this folder"
        refused(evaluate, match=told, seconds=60)
    finally:
        over.set()
        other.join()


def test_one_that_died_elsewhere_is_replaced(
    evaluate: Evaluate, places: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    claims_of(places[2]).join("000001.json").write_bytes_atomic(HOLDER)
    claims_of(places[2]).join("000001.beat").write_bytes_atomic(b'{"time": 9e99, "count": 1}')
    assert evaluate().images == 3
    assert "out: waiting for process 7 on another-machine" in capsys.readouterr().out


def test_one_that_lost_its_claim_writes_nothing_beside_its_replacement(
    evaluate: Evaluate, places: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, out = evaluate_module._judged, Path(places[2])
    journal = out / "evaluation" / "results.jsonl"
    theirs = b'{"format": 1, "digest": "of other settings"}\n'

    def replaced(*arguments: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(judge(*arguments)):
            if number == 1:
                claims_of(places[2]).join("000002.json").write_bytes_atomic(HOLDER)
                journal.write_bytes(theirs)
            yield row

    monkeypatch.setattr(evaluate_module, "_judged", replaced)
    with pytest.raises(QdmrError, match=r"evaluation\.claims: process 7 on another.* took over"):
        evaluate()
    assert journal.read_bytes() == theirs
    assert not (out / "evaluation.json").exists()


def test_where_an_error_ends_it_rows_in_a_store_are_kept(
    evaluate: Evaluate, places: Any, faulty_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty_store.endpoint)
    out = f"s3://{faulty_store.bucket}/out"
    judge = evaluate_module._judged

    def fails(*arguments: Any) -> Iterator[dict[str, Any]]:
        rows = judge(*arguments)
        yield from (next(rows), next(rows))
        raise QdmrError("no worker is left")

    monkeypatch.setattr(evaluate_module, "_judged", fails)
    model, data, _ = places
    with pytest.raises(QdmrError, match="no worker is left"):
        evaluate_run(open_location(model), data=data, out=out)
    lines = open_location(out).join("evaluation", "results.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["index"] for line in lines[1:]] == [0, 1]


SCRIPT = """
import sys, time
from pathlib import Path
import qdmr_ray.evaluate.evaluate as module
from qdmr_ray.evaluate.results import Judged
from qdmr_ray.storage import open_location
model, data, out, begun, go_on = sys.argv[1:]
def judge(task, rows, spread):
    for row in rows:
        judged = Judged(index=row["index"], name=row["name"], values={"input": {"psnr": 1.0}})
        yield {**row, "judged": judged.to_json(indent=None), "failure": ""}
        Path(begun).touch()
        while not Path(go_on).exists():
            time.sleep(0.05)
module._judged, module.ensure_ray, module.ray.nodes = judge, lambda _: None, list
module.evaluate_run(open_location(model), data=data, out=out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["finishes", "is killed"])
def test_two_processes(evaluate: Evaluate, places: Any, tmp_path: Path, end: str) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    first = subprocess.Popen([sys.executable, "-c", SCRIPT, *places, str(begun), str(go_on)])
    try:
        limit = time.monotonic() + 120
        while not begun.exists():
            assert first.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        refused(evaluate, match=rf"out: process {first.pid} on .* is evaluating into this folder")
        if end == "finishes":
            go_on.touch()
        else:
            first.send_signal(signal.SIGKILL)
        first.wait(120)
    finally:
        first.kill()
        first.wait()
    found = evaluate()
    rows = (Path(places[2]) / "evaluation" / "results.jsonl").read_text().splitlines()[1:]
    assert sorted(json.loads(row)["index"] for row in rows) == [0, 1, 2]
    assert found.images == 3


def acquired(folder: Location) -> Claim:
    claim = Claims(folder).acquire(lambda: False, lambda _: None)
    assert claim is not None
    return claim
