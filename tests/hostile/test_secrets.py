"""``qdmr submit``: names of files and variables that suggest a secret, or only seem to."""

import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import refused
from typer.testing import CliRunner

from qdmr_ray.cli.main import app
from qdmr_ray.jobs.client import check_command, check_variables
from qdmr_ray.jobs.sensitive import NotSecret, holds_password, may_be_secret
from qdmr_ray.jobs.upload import plan_upload

VARIABLES = ["WANDB_KEY", "DB_PASS", "HF_TOKEN", "hftoken", "HFTOKEN", "AWS_SECRET_ACCESS_KEY"]
VARIABLES += [
    "dbPassword",
    "DB_PWD",
    "ADMIN_PW",
    "SSH_PRIVATE_KEY",
    "API_KEY_FILE",
    "OPENAI_API_KEY",
]
VARIABLES += [
    "AWS_ACCESS_KEY_ID",
    "GPG_PASSPHRASE",
    "GCP_CREDS",
    "APIKEY",
    "PRIVATEKEY",
    "WANDB_KEY_2",
]
VARIABLES += [
    "MYSECRETS",
    "clientSecret",
    "K8S_CREDENTIAL",
    "MYSQL_PASSWD",
    "TOKENS",
    "Key",
    "QDMR_SECRETS",
]
HARMLESS = [
    "TOKENIZERS_PARALLELISM",
    "KEYBOARD",
    "MONKEY",
    "COMPASS",
    "BYPASS_CACHE",
    "PASSES",
    "AWS_REGION",
]
HARMLESS += [
    "KEY_FRAMES",
    "OMP_NUM_THREADS",
    "DETOKENIZER",
    "PYTHONPATH",
    "RAY_AUTH_MODE",
    "PASS_MANAGER",
]
# Untracked, or in a folder without git.
FILES = ["secrets.py", "secrets/prod.py", "src/credentials/aws.py", "src/hf_token.py", "keys.py"]
FILES += [
    "wandb_key.py",
    "db_pass.py",
    "private/code.cu",
    "Secrets.PY",
    "conf/apiKey.h",
    "a/.secrets/b.py",
]
FILES += [
    "config/prod.token",
    "prod-credentials.yaml",
    "my.key.json",
    "passwords.txt",
    "secrets/__init__.py",
]
CODE = [
    "src/tokenizer.py",
    "keyboard.py",
    "key_frames.py",
    "compass.cu",
    "train.py",
    "conf/lens.yaml",
]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_may_be_a_secret_is_refused_without_its_value(name: str) -> None:
    told = refused(lambda: check_variables([f"{name}=hush"], []), match=f"--env {name}: looks like")
    assert f"--not-secret {name}" in told
    assert "hush" not in told
    harmless = NotSecret([name])
    assert check_variables([f"{name}=1"], [], harmless) == {name: "1"}
    harmless.check()


@pytest.mark.parametrize("name", HARMLESS)
def test_a_variable_that_only_looks_so_travels(name: str) -> None:
    assert check_variables([f"{name}=false"], []) == {name: "false"}


@pytest.mark.parametrize(
    "text",
    [
        "https://ann:hush@store:9000",
        "postgres://:hush@db/x",
        "A=http://a:hush@b?c",
        "s3://k:hush@b",
    ],
)
def test_a_password_in_an_address_is_refused(text: str) -> None:
    for call in (
        lambda: check_variables([f"AWS_ENDPOINT_URL={text}"], []),
        lambda: check_command(["qdmr", "train", "--set", f"data.s3_endpoint={text}"]),
    ):
        assert "hush" not in refused(call, match="secret|password")


@pytest.mark.parametrize(
    "text", ["http://minio:9000", "http://a:80/x@y", "ann@host:/x", "a:b@c", "://:@"]
)
def test_an_address_without_a_password_travels(text: str) -> None:
    check_command([text])
    assert check_variables([f"A={text}"], []) == {"A": text}


@pytest.mark.parametrize("pair", ["", "=", "a b=1", "\x1b[31m=1", "A\n=1", "é=1", "1A=1", "-A=1"])
def test_a_malformed_variable_is_one_printable_line(pair: str) -> None:
    refused(lambda: check_variables([pair], []), match="--env.*NAME=value")
    refused(lambda: check_variables([], [pair]), match="--secret")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("in_git", [True, False], ids=["in git", "without git"])
def test_an_untracked_file_that_may_be_a_secret_stays(
    name: str, in_git: bool, tmp_path: Path
) -> None:
    write(tmp_path, *CODE)
    if in_git:
        git(tmp_path, "init", "-q")
        git(tmp_path, "add", ".")
    write(tmp_path, name)
    hidden = not in_git and any(part.startswith(".") for part in Path(name).parts[:-1])
    upload = plan_upload(tmp_path)
    assert {str(file) for file in upload.files} == set(CODE)
    assert [str(file) for file in upload.secrets] == [] if hidden else [name]


@pytest.mark.parametrize("name", [name for name in FILES if name.lower().endswith((".py", ".cu"))])
def test_code_that_git_tracks_travels(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-f", ".")
    assert [str(file) for file in plan_upload(tmp_path).files] == [name]


def test_a_link_to_a_secret_stays(tmp_path: Path) -> None:
    write(tmp_path, "secrets.py")
    (tmp_path / "train.py").symlink_to("secrets.py")
    assert not plan_upload(tmp_path).files


@pytest.mark.parametrize("way", ["secrets/prod.py", "./secrets/prod.py", "secrets", "secrets/"])
def test_a_file_that_is_named_travels_and_its_neighbour_stays(way: str, tmp_path: Path) -> None:
    write(tmp_path, "secrets/prod.py", "keys.py")
    words = ["submit", "--dry-run", "--code", str(tmp_path), "--not-secret", way, "--", "true"]
    done = CliRunner().invoke(app, words)
    assert "left out, it may hold a secret: keys.py\n--not-secret FILE uploads" in done.stdout
    assert done.stdout.endswith("  secrets/prod.py\n")


@pytest.mark.parametrize(
    "way", ["secret/prod.py", "prod.py", "/secrets", "\x1b[2J", "HF_TOKEN", ".."]
)
def test_a_name_that_nothing_has_is_refused(way: str, tmp_path: Path) -> None:
    write(tmp_path, "secrets/prod.py")

    def submit() -> None:
        harmless = NotSecret([way])
        check_variables(["A=1"], [], harmless)
        plan_upload(tmp_path, harmless)
        harmless.check()

    refused(submit, match=r"--not-secret .*no file of the uploaded folder has this name")


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    assert may_be_secret(text) in (True, False)
    assert holds_password(text) in (True, False)
    assert may_be_secret(f"{text}_SECRET")


LONG = ["://" * 100_000, "://a:" * 60_000, "A" * 300_000, "aA" * 150_000]


@pytest.mark.parametrize("text", LONG, ids=lambda text: f"{len(text)} characters {text[:5]}")
def test_long_names_are_judged_in_a_moment(text: str) -> None:
    began = time.monotonic()
    assert not may_be_secret(text)
    assert not holds_password(text)
    assert time.monotonic() - began < 2
