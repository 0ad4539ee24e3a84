"""Passwords in addresses reach no message, no page and no file; a page reads its folder alone."""

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile.limits import files_below, outcome, refused
from hypothesis import given
from hypothesis import strategies as st

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import QdmrError, without_passwords
from qdmr_ray.report import build_report
from qdmr_ray.storage import open_location

SECRET = "hunter2"
ENDPOINTS = {
    "password": "http://lens:hunter2@minio:9000",
    "token alone": "https://hunter2@minio",
    "at and slash in the password": "http://lens:p@/hunter2@minio:9000",
    "no scheme": "lens:hunter2@minio:9000",
    "query": "http://minio:9000/?X-Amz-Security-Token=hunter2",
    "fragment": "http://minio:9000/#hunter2",
    "second line": "http://lens:a\nhunter2@minio",
}
endpoints = pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS.keys())


@endpoints
def test_an_endpoint_with_a_secret_is_refused_as_setting(endpoint: str) -> None:
    told = refused(
        lambda: experiment_from_dict({"data": {"s3_endpoint": endpoint}}, source="a.yaml"),
        match=r"a\.yaml: data\.s3_endpoint is .*AWS_SECRET_ACCESS_KEY",
    )
    assert SECRET not in told


@endpoints
def test_an_endpoint_with_a_secret_is_refused_as_option_and_variable(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refused(lambda: open_location("s3://a/b", endpoint=endpoint), match="s3_endpoint is")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    told += refused(lambda: open_location("s3://a/b"), match="AWS_ENDPOINT_URL")
    assert SECRET not in told


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:hunter2@bucket/a", "s3://hunter2@bucket", "https://lens:hunter2@host/a"]
)
def test_a_place_with_a_secret_is_refused(uri: str) -> None:
    assert SECRET not in refused(lambda: open_location(uri), match=r"://…@.*: (has|unknown)")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b",
        "s3://bucket/night:2@lens.png",
        "https://medium.com/@lens/a",
        "lens@example.org",
        "http://minio:9000 has no bucket",
    ],
)
def test_what_holds_no_password_stays(text: str) -> None:
    assert without_passwords(text) == text
    assert open_location("s3://bucket/a@b").path == "bucket/a@b"


@given(
    user=st.text(alphabet="abc0%-._~!$&'()*+,;="),
    password=st.text(alphabet="xyz9%-._~!$&'()*+,;=:@/?#", min_size=1),
)
def test_no_error_holds_a_password(user: str, password: str) -> None:
    text = f"http://{user}:{password}SECRET@host:9000: refused"
    error = QdmrError(text)
    assert str(error) == "http://…@host:9000: refused"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def foreign(make_run: Callable[..., Path], folder: Path, **config: Any) -> Path:
    """A run folder of somebody else's, whose settings and texts hold a password."""
    from run_fixtures import CONFIG

    data = {"path": "s3://bucket/data", "s3_endpoint": ENDPOINTS["password"]}
    run = make_run(folder, config={**CONFIG, "data": data, **config})
    (run / "notes.json").write_text(json.dumps([f"Trained on {ENDPOINTS['token alone']}."]))
    (run / "environment.json").write_text(json.dumps({"torch": ENDPOINTS["password"]}))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["failed"] = [{"name": "a", "reason": f"{ENDPOINTS['password']}/a: no answer"}]
    evaluation["niqe_pristine"] = ENDPOINTS["password"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    return run


def test_a_page_holds_no_password_and_asks_no_store(
    make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = foreign(make_run, tmp_path / "run")

    def connect(*_: Any) -> None:
        raise AssertionError("the page connects to the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr("qdmr_ray.storage.location.open_bucket", connect)
    page = Path(build_report(run)).read_text()
    assert SECRET not in page
    assert "http://…@minio:9000" in page


def test_a_sweeps_page_holds_no_password(tmp_path: Path) -> None:
    error = f"{ENDPOINTS['password']}/a: no answer"
    trial = {"id": "0001", "number": 1, "settings": {"data.s3_endpoint": error}, "error": error}
    content = {"metrics": [{"name": "uda/psnr"}], "trials": [{**trial, "state": "failed"}]}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    settings = {"data": {"s3_endpoint": ENDPOINTS["password"]}}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(settings))
    page = Path(build_report(tmp_path)).read_text()
    assert SECRET not in page
    assert "…@minio:9000" in page


OUTSIDE = {
    "the settings": "config.yaml",
    "the evaluation": "evaluation.json",
    "the notes": "notes.json",
    "the metrics": "uda/metrics.jsonl",
    "a photograph": "evaluation/astronaut/input.png",
    "a photograph's folder": "evaluation/astronaut",
    "all photographs": "evaluation",
    "a picture of the training": "uda/pictures/codebook_atlas.png",
    "the pictures of the training": "uda/pictures",
    "a stage": "uda",
}


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_a_link_out_of_the_folder_is_not_followed(make_run, tmp_path: Path, name: str) -> None:
    run, outside = make_run(tmp_path / "run"), make_run(tmp_path / "private")
    file, target = run / name, outside / name
    os.rename(file, tmp_path / "moved")
    file.symlink_to(os.path.relpath(target, file.parent))
    before = files_below(outside)

    def told() -> list[str]:
        page = Path(build_report(run)).read_text()
        return [words for words in ("leads out of", "no name of a folder") if words in page]

    if name == "config.yaml":
        refused(told, match=r"config\.yaml: leads out of .*run over a link")
    else:
        assert outcome(told, seconds=20).value
    assert files_below(outside) == before


def test_a_folder_that_is_itself_a_link_is_read(make_run, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "linked").symlink_to("run")
    (tmp_path / "run" / "again").symlink_to("evaluation")
    page = Path(build_report(tmp_path / "linked")).read_text()
    assert "leads out of" not in page
