"""Tells Ray that this node is about to be taken away, so that training saves itself in time.

    python drain.py now --seconds 90     # before a pod is deleted: waits until the node is empty
    python drain.py watch                # on an EC2 spot instance: waits for Amazon's notice

Ray starts nothing more on a drained node and tells its training workers, which save a checkpoint
and go on elsewhere. Neither Amazon nor Kubernetes tells Ray by itself. In the image this file lies
at /opt/qdmr; it needs Ray alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

# Where EC2 tells an instance about itself. A notice comes two minutes ahead; Amazon advises to
# look every five seconds.
METADATA = "http://169.254.169.254"
LOOK_SECONDS = 5.0
SESSION_SECONDS = 60
NOTICE_SECONDS = 120
HTTP_SECONDS = 2.0
POLL_SECONDS = 1.0
# GCS may be away, as while Kubernetes replaces the head; the watcher must outlive that. One attempt
# must not use up the two minutes.
RETRY_SECONDS = 5.0
ATTEMPT_SECONDS = 30.0
START_SECONDS = 600.0
THIS_NODE = """
import logging, ray
ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
print(ray.get_runtime_context().get_node_id())
"""

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    now = commands.add_parser("now", help="drain this node and wait until nothing runs on it")
    now.add_argument("--seconds", type=int, default=90, help="longest wait")
    watch = commands.add_parser("watch", help="drain this node when EC2 gives notice")
    watch.add_argument("--metadata", default=METADATA, help="of the instance metadata service")
    for command in (now, watch):
        command.add_argument("--node-id", help="another node than this one")
    options = parser.parse_args(arguments)
    if options.command == "now":
        deadline = time.monotonic() + options.seconds
        node = options.node_id or patiently(_this_node, deadline)
        drain(node, deadline, "its pod is deleted")
        wait_until_gone(node, deadline)
    else:
        node = options.node_id or patiently(_this_node, time.monotonic() + START_SECONDS)
        deadline = time.monotonic() + wait_for_notice(options.metadata)
        drain(node, deadline, "spot instance reclaimed")


def patiently(call: Callable[[], T], deadline: float) -> T:
    """Returns the result of ``call``; tries again until ``deadline`` (of ``time.monotonic``).

    Raises:
        subprocess.SubprocessError: of the last attempt.
    """
    while True:
        try:
            return call()
        except subprocess.SubprocessError as error:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise
            print(f"Ray does not answer, tried again: {error}", file=sys.stderr, flush=True)
            time.sleep(RETRY_SECONDS)


def drain(node: str, deadline: float, reason: str) -> None:
    """Tells Ray that ``node`` goes at ``deadline`` (of ``time.monotonic``)."""

    def tell() -> None:
        left = max(0, round(deadline - time.monotonic()))
        print(f"draining node {node}: {reason}, {left} s left", flush=True)
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("ray")), "drain-node", "--node-id", node),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason),
                *("--deadline-remaining-seconds", str(left)),
            ],
            check=True,
            timeout=ATTEMPT_SECONDS,
        )

    patiently(tell, deadline)


def wait_until_gone(node: str, deadline: float) -> None:
    """Returns when Ray has ended ``node``, or at ``deadline`` (of ``time.monotonic``)."""
    from ray.util.state import get_node

    while time.monotonic() < deadline:
        try:
            found = get_node(node)
        except Exception as error:
            # Ray has no common ancestor for what its dashboard's absence raises here; until it is
            # back the node counts as one that still runs.
            print(f"node {node}: {error}", file=sys.stderr, flush=True)
        else:
            if found is None or found.state == "DEAD":
                return
        time.sleep(POLL_SECONDS)


def wait_for_notice(metadata: str) -> int:
    """Seconds that are left, once the instance is to be stopped or terminated."""
    while True:
        try:
            notice = _instance_action(metadata)
        except (OSError, ValueError) as error:
            # The service may fail for a moment; the next look will tell.
            print(f"{metadata}: {error}", file=sys.stderr, flush=True)
            notice = None
        if notice is not None:
            left = (_time_of(notice) - datetime.now(UTC)).total_seconds()
            return max(0, min(NOTICE_SECONDS, round(left)))
        time.sleep(LOOK_SECONDS)


def _time_of(notice: dict[str, str]) -> datetime:
    return datetime.fromisoformat(notice["time"])


def _instance_action(metadata: str) -> dict[str, str] | None:
    """EC2's notice for this instance, None where there is none."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(SESSION_SECONDS)}
    session = _http("PUT", f"{metadata}/latest/api/token", lifetime)
    address = f"{metadata}/latest/meta-data/spot/instance-action"
    try:
        answer = _http("GET", address, {"X-aws-ec2-metadata-token": session})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    action: dict[str, str] = json.loads(answer)
    return action


def _http(method: str, address: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(address, headers=headers, method=method)
    # The service is this machine's own: no proxy leads to it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=HTTP_SECONDS) as answer:
        text: str = answer.read().decode()
    return text


def _this_node() -> str:
    # In a process of its own: Ray ends one that doesn't reach GCS, or whose node dies.
    asked = subprocess.run(
        [sys.executable, "-c", THIS_NODE],
        check=True,
        timeout=ATTEMPT_SECONDS,
        stdout=subprocess.PIPE,
        text=True,
    )
    return asked.stdout.split()[-1]


if __name__ == "__main__":
    main()
