"""Which buckets are looked at before a job starts, in which store, and what then stops it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from qdmr_ray.cli.main import app
from qdmr_ray.config import dump_experiment, load_experiment
from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs.preflight import Place, parse_command, places_of

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with an experiment and a sweep whose data are in a store of their own."""
    folder = tmp_path / "code"
    folder.mkdir()
    data = {"path": "s3://lens/packed", "s3_endpoint": "http://minio:9000"}
    (folder / "try.yaml").write_text(yaml.safe_dump({"run": ["source_only"], "data": data}))
    sweep = {
        "experiment": "try.yaml",
        "metric": "source_only/source/l1",
        "space": {"stages.source_only.lpips": {"choice": [0, 1]}},
        "trials": 2,
        "store": "s3://stages/all",
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder


def places(code: Path, *words: str, variables: dict[str, str] | None = None) -> list[Place]:
    command = parse_command(words, typer.main.get_command(app))
    return places_of(words, command, code, variables or {})


def test_those_of_the_experiment_are_found_in_its_store(code: Path) -> None:
    words = ("qdmr", "train", "try.yaml", "--storage", "s3://runs/mine")
    assert places(code, *words) == [
        Place("s3://runs/mine", "http://minio:9000"),
        Place("s3://lens/packed", "http://minio:9000"),
    ]
    # What replaces a setting counts, and each bucket is asked for once.
    replaced = ("--set", "data.path=s3://runs/packed", "--set", "data.s3_endpoint=http://other")
    assert places(code, *words, *replaced) == [Place("s3://runs/mine", "http://other")]


@pytest.mark.parametrize(("store", "stays"), [("stages", False), ("/shared/stages", True)])
def test_a_sweeps_store_must_outlast_the_job(code: Path, store: str, stays: bool) -> None:
    file = code / "sweep.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"store": store}))
    words = ("qdmr", "sweep", "sweep.yaml", "--storage", "/shared")
    if stays:
        assert places(code, *words) == [Place("s3://lens/packed", "http://minio:9000")]
    else:
        with pytest.raises(QdmrError, match=r"sweep\.yaml: store=stages lies in the job's tempor"):
            places(code, *words)


def test_those_of_a_sweep_are_found(code: Path) -> None:
    found = places(code, "qdmr", "sweep", "sweep.yaml", "--storage", "/shared")
    assert found == [
        Place("s3://stages/all", "http://minio:9000"),
        Place("s3://lens/packed", "http://minio:9000"),
    ]


def test_those_of_a_run_that_is_evaluated_are_found(code: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_experiment(load_experiment(code / "try.yaml")))
    words = ("qdmr", "evaluate", str(run))
    assert places(code, *words) == [Place("s3://lens/packed", "http://minio:9000")]
    other = ("--data", "s3://other/packed", "--set", "data.s3_endpoint=http://other")
    assert places(code, *words, *other) == [Place("s3://other/packed", "http://other")]
    both = ("--set", "evaluation.source_lens=s3://both/packed")
    assert places(code, *words, *both)[1:] == [Place("s3://both/packed", "http://minio:9000")]
    text = dump_experiment(load_experiment(code / "try.yaml", [both[1]]))
    (run / "config.yaml").write_text(text)
    assert places(code, *words)[1:] == [Place("s3://both/packed", "http://minio:9000")]
    none = ("--set", "evaluation.source_lens=null")
    assert places(code, *words, *none) == [Place("s3://lens/packed", "http://minio:9000")]


def test_a_run_in_a_store_is_read_there(
    code: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    text = dump_experiment(load_experiment(code / "try.yaml"))
    boto3.client("s3", endpoint_url=s3_endpoint).put_object(
        Bucket="lens", Key="runs/try/config.yaml", Body=text.encode()
    )
    variables = {"AWS_ENDPOINT_URL": s3_endpoint}
    found = places(code, "qdmr", "evaluate", "s3://lens/runs/try/", variables=variables)
    assert found == [
        Place("s3://lens/runs/try/", s3_endpoint),
        Place("s3://lens/packed", "http://minio:9000"),
    ]
    # A lone checkpoint has no settings.
    found = places(code, "qdmr", "evaluate", "s3://lens/runs/none", variables=variables)
    assert found == [Place("s3://lens/runs/none", s3_endpoint)]


def test_an_experiment_in_the_clusters_image_is_left_to_the_job(code: Path) -> None:
    words = ("qdmr", "train", "/opt/experiments/none.yaml", "--storage", "s3://runs")
    assert places(code, *words) == [Place("s3://runs", None)]


def test_others_are_found_by_their_words(code: Path) -> None:
    words = ("python", "x.py", "--to=s3://runs/a", "s3://lens")
    assert places(code, *words, variables={"AWS_ENDPOINT_URL": "http://x"}) == [
        Place("s3://runs/a", "http://x"),
        Place("s3://lens", "http://x"),
    ]
    # A command that writes to no known place names its buckets in the same way.
    words = ("qdmr", "report", "s3://b/runs/x", "--set=data.path=s3://d/p")
    assert places(code, *words) == [Place("s3://b/runs/x", None), Place("s3://d/p", None)]


def submitted(code: Path, *words: str) -> Any:
    """`qdmr submit` to nobody: whether it gets so far."""
    options = ["--code", str(code), "--address", NOBODY]
    return CliRunner().invoke(app, ["submit", *options, "--", *words])


def train(code: Path, endpoint: str, data: str) -> Any:
    settings = {"run": ["source_only"], "data": {"path": data, "s3_endpoint": endpoint}}
    (code / "try.yaml").write_text(yaml.safe_dump(settings))
    return submitted(code, "qdmr", "train", "try.yaml", "--storage", "s3://lens/runs")


def test_a_bucket_that_the_experiment_names_must_be_there(
    code: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the experiment knows the store.
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    there = train(code, s3_endpoint, "s3://lens/packed")
    assert "no Ray cluster answers there" in str(there.exception)
    missing = train(code, s3_endpoint, "s3://elsewhere/packed")
    assert str(missing.exception) == "s3://elsewhere/packed: there is no such bucket"


def test_a_store_of_the_clusters_own_is_a_warning(code: Path, s3_endpoint: str) -> None:
    done = train(code, NOBODY, "s3://lens/packed")
    assert "no Ray cluster answers there" in str(done.exception)
    (line,) = done.stderr.splitlines()
    assert line.startswith("qdmr: warning: s3://lens/runs: Could not connect")
    assert f"{NOBODY}/lens" in line
    assert "going on, as the cluster may reach it" in line


@pytest.fixture
def refusing_store() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_refused_credentials_stop_it(code: Path, s3_endpoint: str, refusing_store: str) -> None:
    done = train(code, refusing_store, "s3://lens/packed")
    assert isinstance(done.exception, QdmrError)
    assert "s3://lens/runs: these credentials have no right to it" in str(done.exception)
    assert "--no-check" in str(done.exception)


def test_a_wrong_experiment_stops_it_and_is_not_read_with_no_check(code: Path) -> None:
    words = ("qdmr", "train", "try.yaml", "--storage", "/shared", "--set", "sed=1")
    assert "unknown setting sed" in str(submitted(code, *words).exception)
    missing = submitted(code, "qdmr", "train", "none.yaml", "--storage", "/shared")
    assert f"{code}/none.yaml: no such file" in str(missing.exception)
    options = ["submit", "--no-check", "--code", str(code), "--address", NOBODY, "--"]
    done = CliRunner().invoke(app, [*options, *words])
    assert "no Ray cluster answers there" in str(done.exception)
