"""Whom a job can reach out of a pod: the network policies evaluated as Kubernetes does it."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
FILES = CLUSTER / "kubernetes"
Labels = dict[str, str]


def things(*files: Path) -> list[dict[str, Any]]:
    return [thing for file in files for thing in yaml.safe_load_all(file.read_text())]


POLICIES = [thing["spec"] for thing in things(FILES / "base" / "networkpolicies.yaml")]
(CLUSTER_SPEC,) = [thing["spec"] for thing in things(FILES / "base" / "raycluster.yaml")]
WORKERS = {
    group["groupName"]: group["template"]
    for thing in things(*(FILES / "overlays").glob("*/workers.yaml"))
    for group in thing["spec"]["workerGroupSpecs"]
}
(JOB,) = [thing["spec"] for thing in things(FILES / "job" / "rayjob.yaml")]
(REDIS,) = [t for t in things(FILES / "base" / "redis.yaml") if t["kind"] == "Deployment"]
PODS: dict[str, Labels] = {
    name: template["metadata"]["labels"]
    for name, template in {
        "head": CLUSTER_SPEC["headGroupSpec"]["template"],
        **WORKERS,
        "submitter": JOB["submitterPodTemplate"],
        "redis": REDIS["spec"]["template"],
    }.items()
}
JOBS = [name for name in PODS if name != "redis"]
DNS = {"k8s-app": "kube-dns"}


def selects(selector: dict[str, Any] | None, labels: Labels) -> bool:
    assert selector is None or selector.keys() <= {"matchLabels"}
    return (selector or {}).get("matchLabels", {}).items() <= labels.items()


def to_pod(peer: dict[str, Any], namespace: str, labels: Labels) -> bool:
    if "ipBlock" in peer:
        return False
    own = {"kubernetes.io/metadata.name": namespace}
    there = selects(peer["namespaceSelector"], own) if "namespaceSelector" in peer else True
    return (
        (namespace == "qdmr" or "namespaceSelector" in peer)
        and there
        and selects(peer.get("podSelector"), labels)
    )


def to_address(peer: dict[str, Any], address: str) -> bool:
    block = peer.get("ipBlock")
    if block is None:
        return False
    inside = [
        ipaddress.ip_address(address) in ipaddress.ip_network(network)
        for network in (block["cidr"], *block.get("except", ()))
    ]
    return inside[0] and not any(inside[1:])


def reaches(pod: str, target: str | tuple[str, Labels], port: int, protocol: str = "TCP") -> bool:
    """Whether a pod may open this port of an address, or of a pod in a namespace. A pod that no
    policy is about may do all; otherwise one rule of one of its policies has to allow it."""
    about = [
        policy
        for policy in POLICIES
        if "Egress" in policy["policyTypes"] and selects(policy["podSelector"], PODS[pod])
    ]

    def rules() -> Iterator[dict[str, Any]]:
        for policy in about:
            yield from policy.get("egress", ())

    def fits(rule: dict[str, Any]) -> bool:
        ports = [(each.get("port"), each.get("protocol", "TCP")) for each in rule.get("ports", ())]
        peers = [
            to_address(peer, target) if isinstance(target, str) else to_pod(peer, *target)
            for peer in rule.get("to", ())
        ]
        return ("to" not in rule or any(peers)) and (not ports or (port, protocol) in ports)

    return not about or any(map(fits, rules()))


NEEDED: dict[str, tuple[str | tuple[str, Labels], int, str]] = {
    "the head": (("qdmr", PODS["head"]), 6379, "TCP"),
    "a worker's objects": (("qdmr", PODS["gpu-spot"]), 45_123, "TCP"),
    "names": (("kube-system", DNS), 53, "UDP"),
    "long answers about names": (("kube-system", DNS), 53, "TCP"),
    "the head's state": (("qdmr", PODS["redis"]), 6379, "TCP"),
    "the bucket": ("52.216.8.1", 443, "TCP"),
}
CLOSED: dict[str, tuple[str | tuple[str, Labels], int, str]] = {
    "the node's metadata": ("169.254.169.254", 80, "TCP"),
    "the node's metadata over https": ("169.254.169.254", 443, "TCP"),
    "the role of a container": ("169.254.170.2", 80, "TCP"),
    "the role of a pod": ("169.254.170.23", 80, "TCP"),
    "metadata of another provider": ("100.100.100.200", 80, "TCP"),
    "a node's kubelet": ("10.0.3.7", 10_250, "TCP"),
    "a database beside the cluster": ("10.0.9.9", 5432, "TCP"),
    "a router": ("192.168.0.1", 80, "TCP"),
    "mail": ("52.216.8.1", 25, "TCP"),
    "a shell elsewhere": ("52.216.8.1", 22, "TCP"),
    "plain http": ("52.216.8.1", 80, "TCP"),
    "names from elsewhere": ("8.8.8.8", 53, "UDP"),
    "https over UDP": ("52.216.8.1", 443, "UDP"),
    "another port of the DNS": (("kube-system", DNS), 9153, "TCP"),
    "another pod of the system": (("kube-system", {"app": "dashboard"}), 443, "TCP"),
    "the operator": (("ray-system", {"app.kubernetes.io/name": "kuberay-operator"}), 8080, "TCP"),
    "a pod of that label elsewhere": (("default", PODS["gpu-spot"]), 6379, "TCP"),
    "another Redis": (("default", PODS["redis"]), 6379, "TCP"),
    "Redis by another port": (("qdmr", PODS["redis"]), 22, "TCP"),
}
API = {
    "behind its service": ("10.100.0.1", 443),
    "in the network of EKS": ("10.0.1.1", 443),
    "in the network of kind": ("172.18.0.2", 6443),
    "in that of providers": ("100.64.0.1", 443),
    "at home": ("192.168.1.10", 6443),
}


@pytest.mark.parametrize("pod", JOBS)
@pytest.mark.parametrize(("target", "port", "protocol"), NEEDED.values(), ids=NEEDED.keys())
def test_a_pod_reaches_what_it_needs(
    target: str | tuple[str, Labels], port: int, protocol: str, pod: str
) -> None:
    assert reaches(pod, target, port, protocol)


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize(("target", "port", "protocol"), CLOSED.values(), ids=CLOSED.keys())
def test_no_pod_reaches_anything_else(
    target: str | tuple[str, Labels], port: int, protocol: str, pod: str
) -> None:
    assert not reaches(pod, target, port, protocol)


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize(("address", "port"), API.values(), ids=API.keys())
def test_the_head_alone_reaches_the_api_of_kubernetes(address: str, port: int, pod: str) -> None:
    assert reaches(pod, address, port) == (pod == "head")


@pytest.mark.parametrize("target", [*NEEDED.values(), *CLOSED.values()])
def test_redis_reaches_nobody(target: tuple[str | tuple[str, Labels], int, str]) -> None:
    assert not reaches("redis", *target)


def test_the_documents_quota_is_of_the_clusters_pods() -> None:
    text = (CLUSTER / "README.md").read_text()
    (pods, gpus) = re.findall(
        r"create quota qdmr --hard=pods=(\d+),requests.nvidia.com/gpu=(\d+)", text
    )[0]
    (group,) = things(FILES / "overlays" / "gpu" / "workers.yaml")[0]["spec"]["workerGroupSpecs"]
    # Beside the workers: the head, Redis, the pod that submits, and the one that clears Redis.
    assert int(pods) == group["maxReplicas"] + 4
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(gpus) == group["maxReplicas"] * int(limits["nvidia.com/gpu"])


def test_the_documents_pin_the_images_that_are_used() -> None:
    text = (CLUSTER / "README.md").read_text()
    pinned = dict(re.findall(r"(\w+)@\$\(digest (\S+)\)", text))
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile(), re.MULTILINE)
    assert f'PYTHON_IMAGE="{base}@$(digest {base})"' in text
    assert pinned["redis"] == REDIS["spec"]["template"]["spec"]["containers"][0]["image"]


def dockerfile() -> str:
    return (CLUSTER / "docker" / "Dockerfile").read_text()
