"""Several nodes on this machine, for real: a head and two workers, all asking for a token."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from running_prometheus import alert_rules, needs_prometheus, query, scraped_training
from test_monitoring import GPU_PANELS, LOGGED, expressions

CLUSTER = Path(__file__).parents[2] / "cluster"
NODES = CLUSTER / "local" / "nodes.py"
DRAIN = CLUSTER / "docker" / "drain.py"
DRIVER = "import ray; ray.init(); print(int(ray.cluster_resources()['CPU']), 'CPUs')"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def nodes(command: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """``nodes.py`` as a user runs it, in a shell that knows of no cluster."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Of Ray's own metrics; ten seconds by default.
    clean |= {"RAY_metrics_report_interval_ms": "1000"}
    return subprocess.run(
        [sys.executable, NODES, command, "--folder", folder, *options],
        capture_output=True,
        text=True,
        env=clean,
        timeout=400,
    )


def exports(output: str) -> dict[str, str]:
    """The variables that a shell has after ``eval`` of the lines."""
    lines = [line.removeprefix("export ") for line in output.splitlines()]
    return dict(line.split("=", 1) for line in lines)


# A node of Ray ends itself where its agents take more than 15 s to start, as on a busy machine.
ATTEMPTS = 3


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # pytest's own folders are too long for Ray's sockets.
    parent = tempfile.TemporaryDirectory(prefix="q", dir="/tmp")
    yield Path(parent.name) / "c"
    parent.cleanup()


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Two workers with a CPU each; yields the variables that clients need."""
    for _ in range(ATTEMPTS):
        started = nodes("up", folder, "--workers", "2", "--cpus", "1", "--object-store", "80")
        if started.returncode == 0:
            break
    assert started.returncode == 0, started.stderr
    yield exports(started.stdout)
    nodes("down", folder)


def client(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=clean | {"RAY_USAGE_STATS_ENABLED": "0"} | variables,
        timeout=240,
    )


def listed_nodes(cluster: dict[str, str]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{cluster['RAY_API_SERVER_ADDRESS']}/api/v0/nodes?limit=100&detail=1",
        headers={"Authorization": f"Bearer {Path(cluster['RAY_AUTH_TOKEN_PATH']).read_text()}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return found


def test_all_nodes_are_there_and_the_head_has_no_cpus(
    folder: Path, cluster: dict[str, str]
) -> None:
    found = listed_nodes(cluster)
    assert [node["state"] for node in found] == ["ALIVE"] * 3
    kinds = {
        node["labels"]["ray.io/market-type"]: node["resources_total"].get("CPU", 0)
        for node in found
    }
    assert kinds == {"on-demand": 0, "spot": 1}
    shown = nodes("status", folder)
    assert shown.stderr.count("ALIVE") == 3
    assert exports(shown.stdout) == cluster


def test_driver_needs_the_token(cluster: dict[str, str]) -> None:
    joined = client([sys.executable, "-c", DRIVER], cluster)
    assert "2 CPUs" in joined.stdout, joined.stderr
    # By default Ray tries it twenty times, a second each.
    wrong = {**cluster, "RAY_AUTH_TOKEN": "0" * 64, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    refused = client([sys.executable, "-c", DRIVER], wrong)
    assert refused.returncode != 0
    assert "CPUs" not in refused.stdout
    assert "AuthenticationError" in refused.stderr


def test_dashboard_needs_the_token(cluster: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster['RAY_API_SERVER_ADDRESS']}/api/v0/nodes", timeout=60)
    assert refused.value.code == 401


def test_dashboard_listens_on_loopback_alone(cluster: dict[str, str]) -> None:
    port = int(cluster["RAY_API_SERVER_ADDRESS"].rpartition(":")[2])
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                listening.add(address)
    # 127.0.0.1 as the kernel writes it.
    assert listening == {"0100007F"}


def test_token_and_sessions_are_this_users_alone(folder: Path, cluster: dict[str, str]) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert Path(cluster["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600


def test_second_cluster_does_not_take_the_first_ones_folder(
    folder: Path, cluster: dict[str, str]
) -> None:
    again = nodes("up", folder)
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert len(listed_nodes(cluster)) == 3


@needs_prometheus
def test_every_panel_and_alert_of_a_running_cluster(
    folder: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    wanted = {(title, expression) for title, expression in expressions() if title not in GPU_PANELS}
    # No node is being started here.
    wanted = {(t, e) for t, e in wanted if "autoscaler_pending_nodes" not in e}
    with scraped_training(LOGGED, folder / "head", cluster, tmp_path) as address:
        deadline = time.monotonic() + 120
        while wanted and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                wanted = {(t, e) for t, e in wanted if not query(address, e)}
            time.sleep(0.5)
        assert not wanted, "panels without data"
        (psnr,) = query(address, next(e for t, e in expressions() if t == "Validation PSNR"))
        assert psnr["metric"] == {"run": "demo", "stage": "uda"}
        assert float(psnr["value"][1]) == pytest.approx(LOGGED["validation/psnr"])
        (done,) = query(address, next(e for t, e in expressions() if t == "Done"))
        assert 0 < float(done["value"][1]) < 1

        # A metric that is not finite was counted there.
        while (rules := alert_rules(address))["NonFinite"]["state"] != "firing":
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert all(rule["health"] == "ok" for rule in rules.values())
        # By this the alert tells a process that is stuck from one that is gone.
        alive = (
            'ray_qdmr_iteration and on (WorkerId) ray_object_store_memory{Location="WORKER_HEAP"}'
        )
        assert query(address, alive)
        (told,) = rules["NonFinite"]["alerts"]
        assert told["annotations"]["summary"] == "demo/uda: target/gan is not finite"
        assert {rules[name]["state"] for name in ("NoProgress", "DataWait")} == {"inactive"}


class Metadata(BaseHTTPRequestHandler):
    """EC2's metadata service: no notice on the first look, one on the second."""

    looks = 0

    def do_PUT(self) -> None:
        self._answer(200, "session")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "session"
        assert self.path == "/latest/meta-data/spot/instance-action"
        Metadata.looks += 1
        if Metadata.looks == 1:
            self._answer(404, "")
        else:
            at = datetime.now(UTC) + timedelta(seconds=119)
            when = at.strftime("%Y-%m-%dT%H:%M:%SZ")
            self._answer(200, json.dumps({"action": "terminate", "time": when}))

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_spot_notice_drains_the_node(cluster: dict[str, str]) -> None:
    worker = next(node for node in listed_nodes(cluster) if not node["is_head_node"])
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        drained = client(
            [
                *(sys.executable, str(DRAIN), "watch", "--node-id", worker["node_id"]),
                *("--metadata", f"http://127.0.0.1:{service.server_port}"),
            ],
            cluster,
        )
        service.shutdown()
    assert drained.returncode == 0, drained.stderr
    assert Metadata.looks == 2
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = {node["node_id"]: node for node in listed_nodes(cluster)}[worker["node_id"]]
        if found["state"] == "DEAD":
            break
        time.sleep(0.2)
    # Nothing ran on it, so Ray ended it at once, for the reason that it was given.
    assert found["state_message"] == "Terminated due to preemption: spot instance reclaimed"


def test_a_node_that_drains_itself_is_one_of_the_clusters(cluster: dict[str, str]) -> None:
    code = "import drain; print(drain._this_node())"
    found = client([sys.executable, "-c", code], {**cluster, "PYTHONPATH": str(DRAIN.parent)})
    assert found.stdout.strip() in {node["node_id"] for node in listed_nodes(cluster)}, found.stderr


def test_pod_that_is_deleted_waits_until_its_node_is_empty(cluster: dict[str, str]) -> None:
    alive = [node for node in listed_nodes(cluster) if node["state"] == "ALIVE"]
    worker = next(node for node in alive if not node["is_head_node"])
    command = [sys.executable, str(DRAIN), "now", "--node-id", worker["node_id"], "--seconds", "30"]
    drained = client(command, cluster)
    assert drained.returncode == 0, drained.stderr
    states = {node["node_id"]: node["state"] for node in listed_nodes(cluster)}
    assert states[worker["node_id"]] == "DEAD"


def test_down_ends_everything_and_nothing_else(
    folder: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    # A job's command runs in a session of its own.
    marker, script = tmp_path / "pid", tmp_path / "job.sh"
    script.write_text(f"echo $$ > {marker}\nexec sleep 1000\n")
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "job", "submit", "--no-wait", "--", "sh", str(script)]
    submitted = client(command, cluster)
    assert submitted.returncode == 0, submitted.stderr
    deadline = time.monotonic() + 120
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    job = int(marker.read_text())
    stranger = subprocess.Popen(["bash", "-c", "exec -a raylet sleep 1000"])
    try:
        before = mentioning(folder)
        assert {"raylet", "gcs_server"} <= {Path(command[0]).name for command in before.values()}
        ended = nodes("down", folder)
        assert ended.returncode == 0, ended.stderr
        assert not mentioning(folder)
        assert not running(job)
        assert not folder.exists()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_cluster_that_does_not_grow_does_not_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(NODES.parent)
    options = importlib.import_module("nodes")._head_options(6379, 8265)
    assert any("controller" in option for option in options)
    assert not any("autoscaling" in option for option in options)


def test_down_without_a_cluster_says_so(tmp_path: Path) -> None:
    assert "no cluster" in nodes("down", tmp_path / "none").stderr


def test_folder_that_is_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    refused = nodes("up", long)
    assert refused.returncode == 1
    assert "at most 32 characters" in refused.stderr
    assert not long.exists()


def mentioning(folder: Path) -> dict[int, list[str]]:
    """Commands that name the folder, by process id. Ray's own processes name their session's."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and running(int(entry.name)):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(str(folder) in word for word in command):
                found[int(entry.name)] = command
    return found


def running(pid: int) -> bool:
    """Whether the process still runs. A zombie does not: in a container nobody fetches its code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
