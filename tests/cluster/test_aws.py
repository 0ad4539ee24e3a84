"""The files for AWS: accepted by Ray's own validation, and brought up in a simulated account.

The simulation (moto) is deployed with ``stack.yaml``; then Ray's own bootstrap and node provider do
what ``ray up`` and the autoscaler would. Nothing here reaches Amazon.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

AWS = Path(__file__).parents[2] / "cluster" / "aws"
KINDS = ("gpu", "cpu")
CALLER = "203.0.113.7/32"
TOKEN = "~/.ray/auth_token"


def read(kind: str) -> dict[str, Any]:
    """The launcher's file as ``ray up`` reads it."""
    config: dict[str, Any] = yaml.safe_load((AWS / f"{kind}.yaml").read_text())
    return config


def workers_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    types = config["available_node_types"]
    return [kind for name, kind in types.items() if name != config["head_node_type"]]


@pytest.mark.parametrize("kind", KINDS)
def test_ray_accepts_the_file(kind: str) -> None:
    config = prepare_config(read(kind))
    validate_config(config)
    assert config["cluster_name"] == f"qdmr-{kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_key_would_be_refused(kind: str) -> None:
    config = prepare_config({**read(kind), "idle_timeout_minuets": 5})
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate_config(config)


@pytest.mark.parametrize("kind", KINDS)
def test_head_stays_and_workers_are_spot_instances_from_zero(kind: str) -> None:
    config = read(kind)
    head = config["available_node_types"][config["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    # Nothing but drivers and controllers is scheduled on the head.
    assert head["resources"]["CPU"] == 0
    assert head["resources"]["controller"] > 0
    # By this qdmr knows that the cluster grows.
    assert head["resources"]["autoscaling"] == 1
    assert head["labels"]["ray.io/market-type"] == "on-demand"
    for worker in workers_of(config):
        assert worker["min_workers"] == 0
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["labels"]["ray.io/market-type"] == "spot"
    assert config["idle_timeout_minutes"] <= 10
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_token_comes_from_outside_the_repository_and_dashboard_stays_on_loopback(kind: str) -> None:
    config = read(kind)
    assert config["file_mounts"] == {TOKEN: TOKEN}
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)
    dockerfile = (AWS.parent / "docker" / "Dockerfile").read_text()
    assert re.search(r"^\s*RAY_AUTH_MODE=token\b", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_shell_commands_are_well_formed(kind: str) -> None:
    config = read(kind)
    for name, commands in config.items():
        for command in commands if name.endswith("_commands") else []:
            subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_worker_passes_amazons_notice_on(kind: str) -> None:
    commands = read(kind)["worker_start_ray_commands"]
    assert "/opt/qdmr/drain.py watch" in commands[-1]


def test_files_for_gpus_and_cpus_differ_in_their_workers_alone() -> None:
    gpu, cpu = read("gpu"), read("cpu")
    for config, kind in ((gpu, "gpu"), (cpu, "cpu")):
        (worker,) = workers_of(config)
        worker["node_config"].pop("InstanceType")
        assert config["docker"].pop("image") == f"qdmr-ray:{kind}"
        assert config.pop("cluster_name") == f"qdmr-{kind}"
        config["initialization_commands"][1] = config["initialization_commands"][1].replace(
            f":{kind}", ":KIND"
        )
        types = config["available_node_types"]
        types["worker"] = types.pop(f"{kind}_spot")
    assert gpu == cpu


def test_no_key_account_or_password_in_a_file() -> None:
    for file in AWS.glob("*"):
        text = file.read_text()
        assert not re.search(r"AKIA|ASIA|aws_secret|aws_access_key|\b\d{12}\b", text), file.name


def test_cloudformation_template_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("cfn-lint")
    if not linter.exists():
        pytest.skip("cfn-lint, which moto brings, is not installed")
    result = subprocess.run([linter, AWS / "stack.yaml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.fixture
def new_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The EC2 of a simulated account that has its default VPC."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "simulated")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "simulated")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    # Ray puts an SSH key there.
    monkeypatch.setenv("HOME", str(tmp_path))
    region = read("gpu")["provider"]["region"]
    resource_cache.cache_clear()
    client_cache.cache_clear()
    with mock_aws():
        ec2 = boto3.resource("ec2", region)
        boto3.client("ssm", region).put_parameter(
            Name="/image", Value=next(iter(ec2.images.all())).id, Type="String"
        )
        yield ec2
    resource_cache.cache_clear()
    client_cache.cache_clear()


@pytest.fixture
def account(new_account: Any) -> Any:
    """The EC2 of a simulated account that has the stack."""
    deploy(new_account)
    return new_account


def deploy(account: Any, **more: str) -> str:
    """Makes the stack with further parameters and returns its bucket's address."""
    (vpc,) = account.vpcs.all()
    values = {"Vpc": vpc.id, "CallerAddress": CALLER, **more}
    # Names below /aws are Amazon's own, and the simulation has no such image.
    template, replaced = re.subn(
        r"Default: /aws/\S+", "Default: /image", (AWS / "stack.yaml").read_text()
    )
    assert replaced == 1
    cloudformation = boto3.client("cloudformation", read("gpu")["provider"]["region"])
    cloudformation.create_stack(
        StackName="qdmr",
        TemplateBody=template,
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = cloudformation.describe_stacks(StackName="qdmr")["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    address: str = outputs["Bucket"]
    return address


@pytest.mark.slow
@pytest.mark.parametrize("left", [True, False])
def test_a_stack_takes_over_the_bucket_that_an_earlier_one_left(
    left: bool, new_account: Any
) -> None:
    s3, name = boto3.client("s3", "us-east-1"), "qdmr-of-an-earlier-stack"
    if left:
        s3.create_bucket(Bucket=name)
        address = deploy(new_account, ExistingBucket=name)
        assert address == f"s3://{name}"
    else:
        name = deploy(new_account).removeprefix("s3://")
    # It made none beside it.
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == [name]
    for statements in _statements_by_role().values():
        resources = [
            arn
            for statement in statements
            if any(action.startswith("s3:") for action in _listed(statement["Action"]))
            for arn in _listed(statement["Resource"])
        ]
        assert resources == [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]


def test_a_bucket_outlives_its_stack_unless_that_never_came_about() -> None:
    bucket = yaml.load((AWS / "stack.yaml").read_text(), _Template)["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == "RetainExceptOnCreate"
    assert bucket["UpdateReplacePolicy"] == "Retain"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nodes_start_with_the_stacks_filter_and_roles(kind: str, account: Any) -> None:
    groups = {group.id: group.group_name for group in account.security_groups.all()}
    config = bootstrap_aws(prepare_config(read(kind)))
    validate_config({k: v for k, v in config.items() if k != "head_node"})
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        provider.create_node(deepcopy(node_type["node_config"]), {"ray-node-name": name}, 1)
    nodes = {
        tag["Value"]: node
        for node in account.instances.all()
        for tag in node.tags
        if tag["Key"] == "Name"
    }
    assert set(nodes) == {"head", f"{kind}_spot"}
    # Ray made no group of its own, which would be open to the world.
    assert {group.id for group in account.security_groups.all()} == set(groups)
    for node in nodes.values():
        (group,) = node.security_groups
        assert "Nodes" in groups[group["GroupId"]]
        assert {"Key": TAG_RAY_CLUSTER_NAME, "Value": f"qdmr-{kind}"} in node.tags
    profiles = {name: node.iam_instance_profile["Arn"] for name, node in nodes.items()}
    assert "HeadProfile" in profiles["head"]
    assert "WorkerProfile" in profiles[f"{kind}_spot"]
    assert nodes["head"].instance_lifecycle is None
    assert nodes[f"{kind}_spot"].instance_lifecycle == "spot"


@pytest.mark.slow
def test_only_the_caller_gets_in_and_by_ssh_alone(account: Any) -> None:
    (group,) = [g for g in account.security_groups.all() if "Nodes" in g.group_name]
    from_outside = [rule for rule in group.ip_permissions if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
    assert [r["CidrIp"] for r in from_outside[0]["IpRanges"]] == [CALLER]
    inside = [rule for rule in group.ip_permissions if rule["UserIdGroupPairs"]]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group.id]


def test_the_whole_internet_is_no_caller() -> None:
    parameters = yaml.load((AWS / "stack.yaml").read_text(), _Template)["Parameters"]
    pattern = parameters["CallerAddress"]["AllowedPattern"]
    assert re.fullmatch(pattern, CALLER)
    assert not re.fullmatch(pattern, "0.0.0.0/0")


@pytest.mark.slow
def test_roles_reach_one_bucket_and_start_nodes_with_the_workers_role_alone(account: Any) -> None:
    documents = _statements_by_role()
    for statements in documents.values():
        for statement in statements:
            actions = _listed(statement["Action"])
            assert "*" not in "".join(actions)
            if any(action.startswith("s3:") for action in actions):
                assert all("qdmr-" in arn for arn in _listed(statement["Resource"]))
    assert not any(
        action.startswith(("ec2:", "iam:"))
        for statement in documents["worker"]
        for action in _listed(statement["Action"])
    )
    (passed,) = [s for s in documents["head"] if "iam:PassRole" in _listed(s["Action"])]
    assert "WorkerRole" in passed["Resource"]


@pytest.mark.slow
def test_head_may_ask_for_an_accounts_first_spot_instance(account: Any) -> None:
    (made,) = [
        statement
        for statement in _statements_by_role()["head"]
        if "iam:CreateServiceLinkedRole" in _listed(statement["Action"])
    ]
    assert made["Condition"] == {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
    assert made["Resource"].endswith(":role/aws-service-role/spot.amazonaws.com/*")


def _statements_by_role() -> dict[str, list[dict[str, Any]]]:
    """The policy statements of the head's and the workers' role."""
    iam = boto3.client("iam", "us-east-1")
    roles = {role["RoleName"] for role in iam.list_roles()["Roles"]}
    (head,) = [name for name in roles if "HeadRole" in name]
    (worker,) = [name for name in roles if "WorkerRole" in name]
    return {
        kind: [
            statement
            for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
            for statement in _default_version(iam, policy["PolicyArn"])["Statement"]
        ]
        for kind, role in (("head", head), ("worker", worker))
    }


def _default_version(iam: Any, arn: str) -> dict[str, Any]:
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document: dict[str, Any] = iam.get_policy_version(PolicyArn=arn, VersionId=version)[
        "PolicyVersion"
    ]["Document"]
    return document


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


class _Template(yaml.SafeLoader):
    """CloudFormation's short forms (``!Ref``) are of no interest here."""


_Template.add_multi_constructor("!", lambda loader, suffix, node: None)
