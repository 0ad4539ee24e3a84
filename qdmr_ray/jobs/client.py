"""Jobs on a Ray cluster: submitting a command, following it, finding the folder that it wrote.

jobs = Jobs(find_address(None))
job = jobs.submit(["qdmr", "train", "experiments/demo.yaml"], plan_upload(Path(".")))
state = jobs.follow(job, print)
"""

import getpass
import json
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qdmr_ray.errors import QdmrError, SettingsError, one_line
from qdmr_ray.jobs.errors import explained
from qdmr_ray.jobs.folder import folder_in_log, normal_folder
from qdmr_ray.jobs.log_follower import ENDED, Follower
from qdmr_ray.jobs.sensitive import NotSecret, holds_password, may_be_secret
from qdmr_ray.jobs.upload import Upload
from qdmr_ray.parsing import parse_yaml
from qdmr_ray.untrusted import parse_json, read_regular
from qdmr_ray.version import ORIGIN_FILE, from_git

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
CONFIG_VARIABLE = "QDMR_CONFIG"
# Set in a job's environment: the names of variables that its machine must provide.
SECRETS_VARIABLE = "QDMR_SECRETS"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """A job as a list shows it; times are in seconds since 1970."""

    id: str
    state: str
    command: str
    user: str
    began: float | None
    ended: float | None
    message: str
    # Where the command writes, if ``qdmr submit`` knew it.
    folder: str | None = None
    # Of the uploaded code: commit, branch and the digest of its changes, as far as they are known.
    origin: Mapping[str, str] = field(default_factory=dict)


def find_address(flag: str | None) -> str:
    """Returns the jobs API's address: the flag's, that of ``RAY_API_SERVER_ADDRESS``, or
    ``address`` in ``~/.config/qdmr/config.yaml``. Raises SettingsError if none is set, or it is no
    http address."""
    file = Path(os.environ.get(CONFIG_VARIABLE) or "~/.config/qdmr/config.yaml").expanduser()
    address = flag or os.environ.get(ADDRESS_VARIABLE) or _configured(file)
    if not address:
        raise SettingsError(
            "no cluster is named: give --address http://HOST:8265, set RAY_API_SERVER_ADDRESS, or "
            f"write `address: http://…` into {file}"
        )
    if urlsplit(address).scheme not in ("http", "https"):
        such = "the jobs API is reached by http, such as http://127.0.0.1:8265"
        raise SettingsError(f"--address {address}: {such}")
    return address


def _configured(file: Path) -> str | None:
    try:
        values = parse_yaml(read_regular(file)[0] if file.is_file() else "") or {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: cannot be read ({one_line(error)})") from None
    if not isinstance(values, dict) or set(values) - {"address"}:
        raise SettingsError(f"{file}: holds one setting, address: http://HOST:8265")
    return values.get("address")


def check_variables(
    pairs: Sequence[str], secret_names: Sequence[str], not_secret: NotSecret | None = None
) -> dict[str, str]:
    """Returns a job's environment: ``NAME=value`` pairs, and the names that its machine provides.
    Raises SettingsError where a pair or a name is malformed, or a name looks like a secret's and is
    not among ``not_secret``: everybody could read its value in the dashboard and in the cluster's
    logs. The password in an address is a secret under any name."""
    not_secret, variables = not_secret or NotSecret(), {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not _VARIABLE.fullmatch(name):
            raise SettingsError(f"--env {name!a}: write --env NAME=value")
        if name not in not_secret and (may_be_secret(name) or holds_password(value)):
            raise SettingsError(
                f"--env {name}: looks like a secret, which would be readable in the dashboard; put "
                f"it on the cluster (Kubernetes secret, instance role) and give --secret {name}, "
                f"or --not-secret {name} if it is none"
            )
        variables[name] = value
    for name in secret_names:
        if not _VARIABLE.fullmatch(name):
            raise SettingsError(
                f"--secret {name.partition('=')[0]!a}: give the name alone, no value"
            )
    if secret_names:
        variables[SECRETS_VARIABLE] = ",".join(secret_names)
    return variables


def check_command(command: Sequence[str]) -> None:
    """Checks a job's command, which everybody can read in the dashboard; raises SettingsError if a
    word of it holds an address with a password."""
    for number, word in enumerate(command, start=1):
        if holds_password(word):
            raise SettingsError(
                f"word {number} of the command: holds an address with a password, which would be "
                "readable in the dashboard; put it on the cluster and give --secret NAME"
            )


def check_secrets() -> None:
    """Checks, inside a job, that its machine provides the variables given with ``--secret``; raises
    QdmrError if one is missing."""
    for name in filter(None, os.environ.get(SECRETS_VARIABLE, "").split(",")):
        if not os.environ.get(name):
            raise QdmrError(
                f"the environment variable {name} (--secret) is not set on this machine of the "
                "cluster: provide it there, as a Kubernetes secret or in the node's environment"
            )


class Jobs:
    """The jobs API at ``address``; raises QdmrError if nothing answers or it asks for a token."""

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.address = address
        # Ray prefers this variable to its argument; find_address has chosen between them already.
        before = os.environ.get(ADDRESS_VARIABLE)
        os.environ[ADDRESS_VARIABLE] = address
        try:
            self._client: JobSubmissionClient = self._asked(lambda: JobSubmissionClient(address))
        finally:
            os.environ.pop(ADDRESS_VARIABLE)
            if before is not None:
                os.environ[ADDRESS_VARIABLE] = before

    def submit(
        self,
        command: Sequence[str],
        upload: Upload,
        *,
        variables: Mapping[str, str] | None = None,
        name: str | None = None,
        writes: str | None = None,
    ) -> str:
        """Starts a command in a folder with the uploaded files, and returns the job's id. The job
        remembers the folder that it ``writes``, and the commit, branch and changes of its code."""
        job = name or new_id(command)
        origin = from_git(upload.root).origin()
        with tempfile.TemporaryDirectory(prefix="qdmr-job-") as folder:
            upload.copy_to(Path(folder))
            package = Path(folder, "qdmr_ray")
            if (package / "__init__.py").is_file():
                (package / ORIGIN_FILE).write_text(json.dumps(origin))
            request: dict[str, Any] = {
                # Ray passes this to a shell; quoting keeps every argument as it is.
                "entrypoint": shlex.join(_runnable(command)),
                "submission_id": job,
                "runtime_env": {"env_vars": dict(variables or {}), "working_dir": folder},
                "metadata": {"user": _user(), "command": json.dumps(list(command)), **origin},
            }
            if writes is not None:
                request["metadata"]["folder"] = writes
            self._asked(lambda: self._client.submit_job(**request), job)
        return job

    def list(self) -> list[Job]:
        """Returns all jobs that the cluster knows, the newest first."""
        found = [_job(details) for details in self._asked(self._client.list_jobs)]
        return sorted(found, key=lambda job: -(job.began or 0))

    def job(self, name: str) -> Job:
        """Returns one job; raises QdmrError if there is no such job."""
        return _job(self._asked(lambda: self._client.get_job_info(name), name))

    def logs(self, name: str) -> str:
        """Returns what the job has printed so far."""
        return str(self._asked(lambda: self._client.get_job_logs(name), name))

    def follow(
        self, name: str, show: Callable[[str], None], note: Callable[[str], None] = print
    ) -> str:
        """Shows what the job prints until it ends, even over a connection that breaks, and returns
        the job's state. ``note`` receives a line when the connection is lost. Raises QdmrError if
        there is no such job, or nothing answers for minutes."""
        self.job(name)
        return Follower(self._client, self.address, name, show, note).run()

    def stop(self, name: str, wait: float = 60.0) -> str:
        """Asks the job to stop, waits for it, and returns its state."""
        self._asked(lambda: self._client.stop_job(name), name)
        end = time.monotonic() + wait
        while (state := self.job(name).state) not in ENDED and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return state

    def delete(self, name: str) -> None:
        """Has the cluster forget a job and its log; raises QdmrError if it hasn't ended."""
        state = self.job(name).state
        if state not in ENDED:
            raise QdmrError(f"job {name} is {state}: end it with qdmr jobs stop {name} first")
        self._asked(lambda: self._client.delete_job(name), name)

    def folder(self, name: str) -> str:
        """Returns the run or sweep folder that the job writes, whatever the job's state: the one
        that is known since it was submitted, or for other commands than ``qdmr`` the last one that
        its log names. Raises QdmrError if the log names none (yet)."""
        job = self.job(name)
        if job.folder is not None:
            found = normal_folder(job.folder)
            if found is None:
                raise QdmrError(f"job {name}: its folder, {job.folder!a}, can be no run's")
            return found
        found = folder_in_log(job.command, self.logs(name))
        if found is not None:
            return found
        told = "has not named its run folder yet"
        if job.state in ENDED:
            told = "has ended without naming a run folder"
        raise QdmrError(f"job {name} ({job.state}) {told}; see qdmr jobs logs {name}")

    def _asked(self, call: Callable[[], Any], job: str | None = None) -> Any:
        try:
            return call()
        except Exception as error:
            raise explained(error, self.address, job) from error


def new_id(command: Sequence[str]) -> str:
    """Returns a new job's name: user, command, time, and random digits."""
    what = next((word for word in command[1:] if word.isalpha()), "job")
    when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', _user())}-{what}-{when}-{secrets.token_hex(2)}"


def _runnable(command: Sequence[str]) -> list[str]:
    # Run as a module, the uploaded package precedes an installed one, and needs no script on PATH.
    return ["python", "-m", "qdmr_ray.cli", *command[1:]] if command[0] == "qdmr" else [*command]


def _user() -> str:
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return "somebody"


def _job(details: Any) -> Job:
    metadata, shown = details.metadata or {}, details.entrypoint
    with suppress(KeyError, ValueError, TypeError):
        shown = shlex.join(parse_json(metadata["command"]))
    return Job(
        id=details.submission_id or details.job_id or "",
        state=str(getattr(details.status, "value", details.status)),
        command=shown,
        user=metadata.get("user", ""),
        began=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=" ".join((details.message or "").split()),
        folder=metadata.get("folder"),
        origin={n: metadata[n] for n in ("commit", "branch", "diff") if n in metadata},
    )
