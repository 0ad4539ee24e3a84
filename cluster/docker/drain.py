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
import logging
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Where EC2 tells an instance about itself. A notice comes two minutes ahead; Amazon advises to
# look every five seconds.
METADATA = "http://169.254.169.254"
LOOK_SECONDS = 5.0
SESSION_SECONDS = 60
NOTICE_SECONDS = 120
HTTP_SECONDS = 2.0
POLL_SECONDS = 1.0


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
    node = options.node_id or _this_node()
    if options.command == "now":
        drain(node, options.seconds, "its pod is deleted")
        wait_until_gone(node, options.seconds)
    else:
        seconds = wait_for_notice(options.metadata)
        drain(node, seconds, "spot instance reclaimed")


def drain(node: str, seconds: int, reason: str) -> None:
    """Tells Ray that ``node`` goes in ``seconds``."""
    print(f"draining node {node}: {reason}, {seconds} s left", flush=True)
    subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ray")), "drain-node", "--node-id", node),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason),
            *("--deadline-remaining-seconds", str(seconds)),
        ],
        check=True,
    )


def wait_until_gone(node: str, seconds: float) -> None:
    """Returns when Ray has ended ``node``, or when the time is up."""
    from ray.util.state import get_node

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = get_node(node)
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
            left = (_time_of(notice) - datetime.now(timezone.utc)).total_seconds()
            return max(0, min(NOTICE_SECONDS, round(left)))
        time.sleep(LOOK_SECONDS)


def _time_of(notice: dict[str, str]) -> datetime:
    # Python 3.10 doesn't read the Z.
    return datetime.fromisoformat(notice["time"].replace("Z", "+00:00"))


def _instance_action(metadata: str) -> dict[str, str] | None:
    """What EC2 is about to do with this instance; None for nothing."""
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
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    node: str = ray.get_runtime_context().get_node_id()
    # A driver would die with the node that it is connected to.
    ray.shutdown()
    return node


if __name__ == "__main__":
    main()
