"""What a job takes along."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdmr_ray.cli.main import app
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.jobs import upload as package
from qdmr_ray.jobs.client import (
    ADDRESS_VARIABLE,
    CONFIG_VARIABLE,
    SECRETS_VARIABLE,
    check_secrets,
    check_variables,
    find_address,
    new_id,
)
from qdmr_ray.jobs.upload import plan_upload

PROJECT = Path(__file__).parents[2]
CODE = (
    *("pyproject.toml", "experiments/demo.yaml", "qdmr_ray/cli/main.py", "qdmr_ray/tokenizer.py"),
    *(
        "qdmr_ray/data/__init__.py",
        "qdmr_ray/data/packing/pack.py",
        "qdmr_ray/optics/lenses/lens.yaml",
    ),
)
SECRETS = (
    *(".netrc", ".git-credentials", ".aws/config", "token", "hf_token", "kubeconfig"),
    *("secrets.yaml", "server.p12", "terraform.tfvars", ".env", "id_rsa", "keys/server.pem"),
    *("ID_RSA", "Secrets.YAML", "deploy/.Kube/config", ".docker/config.json", "prod.ENV"),
    *("gcp/my-service-account.json", "client_secret_12.json", "db/terraform.tfstate.backup"),
    *("credentials.json", "secrets/note.txt", "a/rclone.conf", ".npmrc", "x/hf-token.txt"),
)
# Names that are enough where nobody has put the file under git.
SUSPECTS = ("notes/my_tokens_2025.txt", "private/notes.txt", "wandb_apikey.txt", "key.json")
REST = (
    "data/shard-0.parquet",
    "runs/demo/uda/final/model.safetensors",
    "qdmr_ray/__pycache__/cli.cpython-311.pyc",
    "weights/vgg16.pth",
    "photos.zip",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*CODE, *REST):
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "project"


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def taken(folder: Path) -> set[str]:
    return {str(name) for name in plan_upload(folder).files}


def test_code_goes_and_data_runs_and_secrets_stay(folder: Path) -> None:
    assert taken(folder) == set(CODE)


def test_in_a_checkout_what_git_ignores_stays_too(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / "scratch").mkdir()
    (folder / "scratch" / "notes.txt").write_text("mine")
    (folder / ".gitignore").write_text("scratch/\n")
    assert taken(folder) == {*CODE, ".gitignore"}
    # Even what somebody has committed by mistake.
    write(folder, "id_rsa")
    git(folder, "add", "-f", "data", "id_rsa")
    assert taken(folder) == {*CODE, ".gitignore"}


@pytest.mark.parametrize("name", [*SECRETS, *SUSPECTS])
@pytest.mark.parametrize("in_git", [True, False])
def test_what_may_be_a_secret_stays(folder: Path, name: str, in_git: bool) -> None:
    write(folder, name)
    if in_git:
        git(folder, "init", "-q")
    upload = plan_upload(folder)
    assert {str(file) for file in upload.files} == set(CODE)
    # Outside of git hidden folders are not even looked into.
    if in_git or not any(part.startswith(".") for part in Path(name).parts[:-1]):
        assert [str(file) for file in upload.secrets] == [name]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_git_tracks_stays_and_is_named(folder: Path, name: str) -> None:
    write(folder, name)
    git(folder, "init", "-q")
    git(folder, "add", "-f", ".")
    done = CliRunner().invoke(app, ["submit", "--dry-run", "--code", str(folder), "--", "true"])
    assert f"left out, it may hold a secret: {name}\n" in done.stdout
    assert f"  {name}\n" not in done.stdout
    assert "left out, no code: runs/ (1 files)\n" in done.stdout
    assert taken(folder) == set(CODE)


def test_what_git_tracks_goes_though_its_name_is_odd(folder: Path) -> None:
    git(folder, "init", "-q")
    odd = (*SUSPECTS, "lib/data/table.csv", "tools/runs/plan.yaml", ".github/workflows/ci.yml")
    write(folder, *odd)
    assert taken(folder) == set(CODE)
    git(folder, "add", *odd)
    assert taken(folder) == {*CODE, *odd}


@pytest.mark.parametrize("in_git", [True, False])
def test_data_and_runs_inside_of_other_folders_stay(folder: Path, in_git: bool) -> None:
    if in_git:
        git(folder, "init", "-q")
    write(folder, "x/data/photo.png", "x/Runs/demo/config.yaml", "a/b/venv/lib/os.py", ".idea/x")
    assert taken(folder) == set(CODE)


def test_a_link_goes_as_what_it_leads_to(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/notes.txt")
    write(folder, ".env")
    (folder / "notes.txt").symlink_to(tmp_path / "elsewhere" / "notes.txt")
    (folder / "settings.txt").symlink_to(".env")
    (folder / "again.yaml").symlink_to("experiments/demo.yaml")
    git(folder, "init", "-q")
    assert taken(folder) == {*CODE, "again.yaml"}
    assert "settings.txt" in {str(name) for name in plan_upload(folder).secrets}


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="no checkout")
def test_this_projects_own_code_goes() -> None:
    done = subprocess.run(
        ["git", "-C", str(PROJECT), "ls-files", "-z", "qdmr_ray", "experiments", "cluster"],
        check=True,
        capture_output=True,
        text=True,
    )
    here = {name for name in done.stdout.split("\0") if name and (PROJECT / name).is_file()}
    assert here - {str(name) for name in plan_upload(PROJECT).files} == set()


def test_a_copy_holds_what_was_planned(folder: Path, tmp_path: Path) -> None:
    plan_upload(folder).copy_to(tmp_path / "copy")
    files = {
        str(p.relative_to(tmp_path / "copy"))
        for p in (tmp_path / "copy").rglob("*.*")
        if p.is_file()
    }
    assert files == set(CODE)
    assert (tmp_path / "copy" / CODE[1]).read_text() == CODE[1]


def test_too_much_is_refused_with_the_largest_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "LARGEST_BYTES", 20)
    with pytest.raises(QdmrError, match=r"largest: qdmr_ray/optics/lenses/lens\.yaml"):
        plan_upload(folder)


@pytest.fixture
def no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "config.yaml"))
    return tmp_path / "config.yaml"


def test_the_flag_goes_before_the_variable_and_this_before_the_file(
    no_address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="no cluster is named: give --address"):
        find_address(None)
    no_address.write_text("address: http://file:1\n")
    assert find_address(None) == "http://file:1"
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://variable:1")
    assert find_address(None) == "http://variable:1"
    assert find_address("http://flag:1") == "http://flag:1"


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://host:10001", "auto"])
def test_an_address_that_is_not_http_is_refused(no_address: Path, address: str) -> None:
    with pytest.raises(SettingsError, match="is reached by http"):
        find_address(address)


def test_a_config_with_anything_else_is_refused(no_address: Path) -> None:
    no_address.write_text("adress: http://x:1\n")
    with pytest.raises(SettingsError, match=r"config\.yaml: holds one setting"):
        find_address(None)


def test_variables_travel_and_secrets_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_variables(["AWS_REGION=eu-west-1", "A=b=c"], ["AWS_SECRET_ACCESS_KEY"])
    assert found == {
        "AWS_REGION": "eu-west-1",
        "A": "b=c",
        SECRETS_VARIABLE: "AWS_SECRET_ACCESS_KEY",
    }
    monkeypatch.setenv(SECRETS_VARIABLE, found[SECRETS_VARIABLE])
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(QdmrError, match=r"AWS_SECRET_ACCESS_KEY \(--secret\) is not set"):
        check_secrets()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "there")
    check_secrets()


@pytest.mark.parametrize("pair", ["AWS_SECRET_ACCESS_KEY=x", "hf_token=x", "DB_PASSWORD=x"])
def test_a_secrets_value_is_refused_and_not_repeated(pair: str) -> None:
    with pytest.raises(SettingsError) as raised:
        check_variables([pair.replace("=x", "=hush")], [])
    assert "looks like a secret" in str(raised.value)
    assert "hush" not in str(raised.value)
    with pytest.raises(SettingsError) as raised:
        check_variables([], [pair.replace("=x", "=hush")])
    assert "hush" not in str(raised.value)


def test_ids_of_two_jobs_differ_and_say_what_they_do() -> None:
    ids = {new_id(["qdmr", "train", "experiments/demo.yaml"]) for _ in range(50)}
    assert len(ids) == 50
    assert all("-train-" in name for name in ids)
