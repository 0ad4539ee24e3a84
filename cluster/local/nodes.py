"""Several Ray nodes on this machine: a cluster to try things on before one is rented.

    eval "$(python cluster/local/nodes.py up --workers 2)"  # RAY_ADDRESS, token
    qdmr submit --follow -- qdmr train experiments/demo.yaml --storage "$PWD/runs"
    python cluster/local/nodes.py status
    python cluster/local/nodes.py down

It has the form of the clusters in ``cluster/aws`` and ``cluster/kubernetes``: a head without CPUs,
which holds the drivers, and workers that come and go. Every node asks for the cluster's token, the
dashboard listens on loopback, and ports are free ones, so that other Rays run beside it. Ray's own
ports listen on all interfaces whatever it is told; without the token they answer nothing.

``down`` ends what ``up`` started, found by process id and command line, deletes what it wrote, and
nothing else; it needs Linux's /proc. The cluster's folder must be this user's alone: in /tmp
anybody may have made one of its name, to choose what ``down`` ends and what a shell evaluates.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Short, because Ray puts sockets below it, whose paths have at most 107 characters.
FOLDER = Path(f"/tmp/qdmr-cluster-{os.getuid()}")
LONGEST_FOLDER = 32
STATE_FILE, TOKEN_FILE = "state.json", "token"
PORTS_OF_A_NODE = (
    "dashboard-agent-listen",
    "dashboard-agent-grpc",
    "runtime-env-agent",
    "metrics-export",
    "node-manager",
    "object-manager",
)
# Below the ports that Linux gives to outgoing connections.
PORTS = range(20000, 32000)
START_SECONDS = 120.0
# Ray ends in less, but waits for a job that still runs.
STOP_SECONDS = 5.0
POLL_SECONDS = 0.2
# Drivers that the head has room for; each takes one where a cluster offers the resource.
CONTROLLERS = 8
# A session's files are kept out of sight of others, and so is the token.
PRIVATE = 0o700
# The nodes' names, which are those of their folders and logs, too.
NODE_NAME = re.compile(r"head|worker[1-9][0-9]{0,5}")
TOKEN = re.compile(r"[0-9a-f]{64}")
# More than the state of a thousand nodes.
LARGEST_FILE = 100_000
# A process that is known by its id and its start, since ids are used again.
Process = tuple[int, int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    options = _parser().parse_args(arguments)
    if not Path("/proc/self/stat").exists():
        _stop("several nodes on one machine need Linux")
    {"up": up, "down": down, "status": status}[options.command](options)


def up(options: argparse.Namespace) -> None:
    """Starts the nodes, waits until all are there, and prints what clients need."""
    folder: Path = options.folder
    _make_private(folder)
    token = folder / TOKEN_FILE
    _write_whole(token, secrets.token_hex(32))
    environment = _node_environment(token)
    gcs, dashboard = _free_ports(2)
    processes: dict[str, Process] = {}
    state = {"gcs": gcs, "dashboard": dashboard, "processes": processes}
    # From here on ``down`` knows the folder, whatever happens.
    _write_state(folder, state)
    try:
        processes["head"] = _start("head", _head_options(gcs, dashboard), folder, environment)
        _write_state(folder, state)
        _wait_for_nodes(folder, state, 1)
        for number in range(1, options.workers + 1):
            name = f"worker{number}"
            processes[name] = _start(name, _worker_options(gcs, options), folder, environment)
            _write_state(folder, state)
        _wait_for_nodes(folder, state, options.workers + 1)
    except BaseException:
        down(options)
        raise
    _say(f"{options.workers + 1} nodes; dashboard: http://127.0.0.1:{dashboard}, token in {token}")
    _print_exports(folder, state)


def down(options: argparse.Namespace) -> None:
    """Ends the nodes and whatever runs on them; does nothing where there are none."""
    folder: Path = options.folder
    if not _has_cluster(folder):
        _say(f"no cluster in {folder}")
        return
    nodes = _read_state(folder)["processes"]
    started = [process for name, process in nodes.items() if _is_node(folder, name, process)]
    # Whoever is left without a parent below is still known here.
    everything = _with_descendants(started)
    for process in started:
        _signal(process, signal.SIGTERM)
    left = _wait_for_end(everything, STOP_SECONDS)
    for process in left:
        _signal(process, signal.SIGKILL)
    left = _wait_for_end(left, STOP_SECONDS)
    if left:
        _stop(f"processes {', '.join(str(pid) for pid, _ in left)} can't be ended")
    _delete_written(folder, nodes)
    _say("all nodes ended")


def status(options: argparse.Namespace) -> None:
    """Prints the nodes as the cluster sees them, and what clients need."""
    if not _has_cluster(options.folder):
        _stop(f"no cluster in {options.folder}: start one with {sys.argv[0]} up")
    state = _read_state(options.folder)
    for name, process in state["processes"].items():
        if not _is_node(options.folder, name, process):
            _say(f"{name} has ended; see {_log(options.folder, name)}")
    head = state["processes"].get("head", (0, 0))
    if not _is_node(options.folder, "head", head):
        # Somebody else may listen on its ports by now, who must not be sent the token.
        _stop(f"the cluster in {options.folder} has no head: end it with {sys.argv[0]} down")
    for node in _nodes(options.folder, state):
        kind = "head" if node["is_head_node"] else "worker"
        cpus = node["resources_total"].get("CPU", 0)
        _say(f"{node['state']:5} {kind:6} {cpus:g} CPUs  {node['node_id']}")
    _print_exports(options.folder, state)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("up", up), ("down", down), ("status", status)):
        command = commands.add_parser(name, help=(function.__doc__ or "").partition(";")[0])
        command.add_argument(
            "--folder", type=_absolute, default=FOLDER, help=f"of this cluster (default: {FOLDER})"
        )
        if name == "up":
            command.add_argument("--workers", type=int, default=2, help="nodes beside the head")
            command.add_argument("--cpus", type=int, default=2, help="CPUs of a worker")
            command.add_argument(
                "--object-store", type=int, default=200, help="megabytes of a worker's object store"
            )
    return parser


def _absolute(folder: str) -> Path:
    """Another shell, in another folder, is told the same place."""
    return Path(folder).absolute()


def _make_private(folder: Path) -> None:
    """A new folder for this user alone: under /tmp anybody could have put one there."""
    if len(str(folder)) > LONGEST_FOLDER:
        _stop(f"--folder {folder}: choose a path of at most {LONGEST_FOLDER} characters")
    try:
        folder.mkdir(mode=PRIVATE)
    except FileExistsError:
        _check_private(folder)
        _stop(f"{folder} exists: end the cluster there with {sys.argv[0]} down, or set --folder")
    except OSError as error:
        _stop(f"--folder {folder}: {error.strerror}")


def _check_private(folder: Path) -> None:
    """Stops unless the folder is this user's alone, so that nobody else has written into it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        _stop(f"--folder {folder}: is no folder; choose another with --folder")
    if found.st_uid != os.geteuid():
        _stop(f"--folder {folder}: belongs to another user; choose another with --folder")
    if found.st_mode & 0o077:
        _stop(
            f"--folder {folder}: others may use it (mode {stat.S_IMODE(found.st_mode):o}), and a "
            f"cluster's folder has mode {PRIVATE:o}; choose another with --folder"
        )


def _has_cluster(folder: Path) -> bool:
    """Whether ``up`` has been here; stops where somebody else may have written what lies there."""
    if not os.path.lexists(folder):
        return False
    _check_private(folder)
    return os.path.lexists(folder / STATE_FILE)


def _node_environment(token: Path) -> dict[str, str]:
    # A token or an address that this shell has for another cluster must not get into this one.
    ours = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return ours | {
        # A job's `python` is then the one that runs Ray, whether its environment is active or not.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs workers at nice 15; beside anything else that runs here they would starve.
        "RAY_worker_niceness": "0",
    }


def _head_options(gcs: int, dashboard: int) -> list[str]:
    client_server = _free_ports(1)[0]
    return [
        "--head",
        f"--port={gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client_server}",
        "--num-cpus=0",
        "--num-gpus=0",
        f"--resources={json.dumps({'controller': CONTROLLERS})}",
        "--labels=ray.io/market-type=on-demand",
        # The least that Ray takes; no data lies on the head.
        "--object-store-memory=80000000",
    ]


def _worker_options(gcs: int, options: argparse.Namespace) -> list[str]:
    return [
        f"--address=127.0.0.1:{gcs}",
        f"--num-cpus={options.cpus}",
        "--num-gpus=0",
        "--labels=ray.io/market-type=spot",
        f"--object-store-memory={options.object_store * 1_000_000}",
    ]


def _start(name: str, options: list[str], folder: Path, environment: dict[str, str]) -> Process:
    """A node; ``--block`` makes it the parent of its processes and their end with it."""
    kinds = PORTS_OF_A_NODE
    free = zip(kinds, _free_ports(len(kinds)), strict=True)
    ports = [f"--{kind}-port={port}" for kind, port in free]
    # Nodes that start at the same time would take the same names in a folder that they share.
    command = [_ray(), "start", "--block", *options, *ports, _temp_dir(folder, name)]
    with _log(folder, name).open("wb") as log:
        node = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return node.pid, _started_at(node.pid)


def _ray() -> str:
    """Ray's command: of this Python's environment first."""
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.exists() else shutil.which("ray")
    return found or _stop("Ray is not installed beside this Python: run `make install`")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, chosen at random: others may choose at the same time."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _wait_for_nodes(folder: Path, state: dict[str, Any], count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for name, process in state["processes"].items():
            if not _runs(process):
                _stop(f"{name} ended at its start:\n{_tail(_log(folder, name))}")
        with contextlib.suppress(OSError):
            if sum(node["state"] == "ALIVE" for node in _nodes(folder, state)) == count:
                return
        time.sleep(POLL_SECONDS)
    _stop(f"the nodes were not there after {START_SECONDS:g} s; see {folder}")


def _nodes(folder: Path, state: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes as the cluster's dashboard lists them."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{state['dashboard']}/api/v0/nodes?limit=1000",
        headers={"Authorization": f"Bearer {_read_token(folder)}"},
    )
    # A proxy has no business with this machine's own ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        nodes: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return nodes


def _print_exports(folder: Path, state: dict[str, Any]) -> None:
    values = {
        "RAY_ADDRESS": f"127.0.0.1:{state['gcs']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{state['dashboard']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / TOKEN_FILE),
    }
    for name, value in values.items():
        # A shell evaluates these lines.
        print(f"export {name}={shlex.quote(value)}")


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    _write_whole(folder / STATE_FILE, json.dumps(state))


def _write_whole(file: Path, text: str) -> None:
    """Writes a file for this user alone, which is there as a whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.touch(mode=0o600)
    part.write_text(text)
    part.replace(file)


def _read_state(folder: Path) -> dict[str, Any]:
    """What ``up`` wrote; stops at anything that it doesn't write."""
    file = folder / STATE_FILE
    try:
        read = json.loads(_read_file(file))
        return {
            "gcs": _whole_number(read["gcs"], 65535),
            "dashboard": _whole_number(read["dashboard"], 65535),
            "processes": {
                _node_name(name): (_whole_number(pid, 2**31), _whole_number(started, 2**63))
                for name, (pid, started) in read["processes"].items()
            },
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _stop(
            f"{file}: is not what {sys.argv[0]} up writes ({type(error).__name__}); end the nodes "
            "by hand, then delete the folder"
        )


def _whole_number(value: Any, largest: int) -> int:
    # True is an int, too.
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError
    return value


def _node_name(name: str) -> str:
    if not NODE_NAME.fullmatch(name):
        raise ValueError
    return name


def _read_token(folder: Path) -> str:
    token = ""
    with contextlib.suppress(OSError, ValueError):
        token = _read_file(folder / TOKEN_FILE)
    if not TOKEN.fullmatch(token):
        _stop(f"{folder / TOKEN_FILE}: holds no token; end the cluster with {sys.argv[0]} down")
    return token


def _read_file(file: Path) -> str:
    """The text of a file; a link or a pipe is not followed, nor waited for."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError
        return opened.read(LARGEST_FILE).decode()


def _delete_written(folder: Path, nodes: Iterable[str]) -> None:
    """Deletes what ``up`` and its nodes wrote; says so where something else is left."""
    for name in nodes:
        shutil.rmtree(folder / name, ignore_errors=True)
        _log(folder, name).unlink(missing_ok=True)
    for name in (TOKEN_FILE, f"{TOKEN_FILE}.part", f"{STATE_FILE}.part", STATE_FILE):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        _say(f"{folder}: stays, as other files are there ({error.strerror})")


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _tail(file: Path, lines: int = 15) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


def _with_descendants(started: Iterable[Process]) -> list[Process]:
    """The processes that still run, and all that descend from them or share their sessions.

    A job's command is in a session of its own, and a descendant may have lost its parent.
    """
    running = [process for process in started if _runs(process)]
    sessions = {pid for pid, _ in running}
    parents, found = dict[int, int](), dict[int, int]()
    for pid, fields in _process_table().items():
        parents[pid] = int(fields[1])
        if int(fields[3]) in sessions:
            found[pid] = int(fields[19])
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor not in sessions:
            ancestor = parents[ancestor]
        if ancestor in sessions:
            found[pid] = _started_at(pid)
    return list(found.items())


def _process_table() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat from the third one on, by process id."""
    table = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            table[int(entry.name)] = fields
    return table


def _stat(pid: int) -> list[str]:
    """Empty where there is no such process, or only its exit code is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The second field is a name in parentheses, in which anything may stand.
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] == "Z" else fields


def _started_at(pid: int) -> int:
    """In ticks since the machine's start; 0 where there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _runs(process: Process) -> bool:
    pid, started = process
    return started != 0 and _started_at(pid) == started


def _is_node(folder: Path, name: str, process: Process) -> bool:
    """Whether the process runs and is the node that ``up`` started here: the command line of a node
    names its folder."""
    try:
        words = Path(f"/proc/{process[0]}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return _runs(process) and os.fsencode(_temp_dir(folder, name)) in words


def _temp_dir(folder: Path, name: str) -> str:
    return f"--temp-dir={folder / name}"


def _signal(process: Process, number: signal.Signals) -> None:
    if _runs(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process[0], number)


def _wait_for_end(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Waits for the processes to end and returns those that still run afterwards."""
    deadline = time.monotonic() + seconds
    left = [process for process in processes if _runs(process)]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [process for process in left if _runs(process)]
    return left


def _say(text: str) -> None:
    # Standard output belongs to the export lines.
    print(text, file=sys.stderr)


def _stop(text: str) -> NoReturn:
    _say(f"nodes.py: {text}")
    sys.exit(1)


if __name__ == "__main__":
    main()
