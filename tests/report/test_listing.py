"""Runs and sweeps in a folder: what is listed, and in which state."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdmr_ray.cli.main import main
from qdmr_ray.models.documents import Begun
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, NetworkSettings, SwinSettings
from qdmr_ray.report.listing import Listed, listed
from qdmr_ray.storage import open_location
from qdmr_ray.storage.claims import Claim, Claims

SMALL = NetworkSettings(
    widths=(8, 16),
    residual_blocks=1,
    codebook_size=8,
    code_dim=4,
    swin=SwinSettings(groups=1, blocks=2, heads=2, window=4),
)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def write_run(
    storage: Path, name: str, *, logged: dict[str, list[int]], done: tuple[str, ...] = ()
) -> Path:
    run = storage / name
    for stage, iterations in logged.items():
        (run / stage).mkdir(parents=True)
        lines = [
            {"iteration": n, "time": 1000.0 + n, "source/l1": 0.5, "validation/psnr": 20.0 + n}
            for n in iterations
        ]
        (run / stage / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for stage in done:
        place = open_location(run / stage / "final")
        save_model(place, QDMR(SMALL), kind="qdmr_base", step=9, digest="d")
    stages = {"vqgan": {"iterations": 9}, "uda": {"iterations": 30}}
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"run": ["vqgan", "uda"], "stages": stages}))
    return run


def hold(folder: Path) -> Claim:
    claim = Claims(open_location(folder / "claims")).acquire(lambda: False, print)
    assert claim is not None
    return claim


def only(storage: Path) -> Listed:
    (one,) = listed(open_location(storage))
    return one


def test_a_run_in_progress_tells_where_it_is(storage: Path) -> None:
    run = write_run(storage, "lens", logged={"vqgan": [3, 9], "uda": [5, 10]}, done=("vqgan",))
    with hold(run):
        one = only(storage)
    assert (one.name, one.kind, one.state) == ("lens", "run", "running")
    assert (one.stage, one.iteration, one.iterations) == ("uda", 10, 30)
    assert (one.metric, one.value, one.updated) == ("validation/psnr", 30.0, 1010.0)
    assert only(storage).state == "stopped"


def test_a_finished_run_is_told_by_its_stages(storage: Path) -> None:
    write_run(storage, "lens", logged={"vqgan": [9], "uda": [30]}, done=("vqgan", "uda"))
    assert only(storage).state == "finished"


def test_a_stage_in_a_shared_store_is_followed_only_inside_the_listed_folder(
    storage: Path, tmp_path: Path
) -> None:
    run = write_run(storage, "lens", logged={})
    for place, expected in ((storage / "store/vqgan-1", 4), (tmp_path / "elsewhere", 0)):
        Begun(digest="1", store=str(place)).write(open_location(run / "vqgan" / "begun.json"))
        (place / "vqgan").mkdir(parents=True)
        (place / "vqgan" / "metrics.jsonl").write_text('{"iteration": 4}\n')
        one = next(one for one in listed(open_location(storage)) if one.name == "lens")
        assert (one.stage, one.iteration) == ("vqgan", expected)


def write_sweep(storage: Path, **changes: Any) -> Path:
    sweep = storage / "sweeps" / "codes"
    sweep.mkdir(parents=True)
    trials = [
        {"id": "0000", "number": 0, "settings": {}, "state": "finished", "values": [25.0]},
        {"id": "0001", "number": 1, "settings": {}, "state": "running"},
    ]
    content = {
        "metrics": [{"name": "uda/validation/psnr"}],
        "trials": trials,
        "best": "0000",
        "state": "running",
        "planned": 16,
        "updated": time.time(),
    }
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, **content, **changes}))
    # A trial's folder is no run of its own.
    write_run(sweep / "trials", "0000", logged={})
    return sweep


@pytest.mark.parametrize(("state", "shown"), [("running", "running"), ("failed", "failed")])
def test_a_sweep_tells_its_trials_and_its_best(storage: Path, state: str, shown: str) -> None:
    with hold(write_sweep(storage, state=state)):
        one = only(storage)
    assert (one.name, one.kind, one.state) == ("sweeps/codes", "sweep", shown)
    assert (one.iteration, one.iterations) == (1, 16)
    assert (one.metric, one.value) == ("uda/validation/psnr", 25.0)


def test_a_killed_sweep_is_stopped(storage: Path) -> None:
    write_sweep(storage)
    assert only(storage).state == "stopped"


def test_what_cannot_be_read_is_listed_with_its_reason(storage: Path) -> None:
    run = write_run(storage, "lens", logged={})
    (run / "config.yaml").write_text("a: [")
    one = only(storage)
    assert one.state == "unreadable"
    assert "config.yaml" in one.error


@pytest.mark.parametrize("run", [7, "vqgan", {"a": 1}, ["..", "a/b", "", None], None])
def test_settings_that_name_no_stages_end_no_listing(storage: Path, run: Any) -> None:
    place = write_run(storage, "lens", logged={})
    (place / "config.yaml").write_text(yaml.safe_dump({"run": run, "stages": 3}))
    write_run(storage, "other", logged={"vqgan": [3]})
    found = {one.name: one for one in listed(open_location(storage))}
    assert found.keys() == {"lens", "other"}
    assert found["lens"].stage == ""


def test_the_command_prints_a_table_and_writes_json(
    storage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def qdmr(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["qdmr", "runs", "list", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    storage.mkdir()
    assert "no run and no sweep in" in qdmr(str(storage))
    write_run(storage, "lens", logged={"vqgan": [3]})
    write_sweep(storage)
    out = qdmr(str(storage), "--json", str(tmp_path / "f.json"))
    rows = [line for line in out.splitlines() if "lens" in line or "sweeps/codes" in line]
    assert "stopped" in rows[0]
    assert any("3/9" in row and "validation/psnr 23" in row for row in rows)
    saved = json.loads((tmp_path / "f.json").read_text())
    assert {one["name"] for one in saved} == {"lens", "sweeps/codes"}


def test_runs_in_a_store_are_listed(s3_endpoint: str, storage: Path) -> None:
    run = write_run(storage, "lens", logged={"vqgan": [3]})
    place = open_location("s3://lens/runs")
    for file in (f for f in run.rglob("*") if f.is_file()):
        place.join("lens", str(file.relative_to(run))).write_bytes_atomic(file.read_bytes())
    (one,) = listed(place)
    assert (one.name, one.place) == ("lens", "s3://lens/runs/lens")
    assert (one.state, one.stage, one.iteration) == ("stopped", "vqgan", 3)
