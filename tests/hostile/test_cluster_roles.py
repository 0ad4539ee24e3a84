"""What somebody who acts as a role of the cluster on AWS may do, as whoever submits a job can: the
policies of stack.yaml evaluated by the rules of IAM, as far as they use them."""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

AWS = Path(__file__).parents[2] / "cluster" / "aws"
CONFIGS = {kind: yaml.safe_load((AWS / f"{kind}.yaml").read_text()) for kind in ("cpu", "gpu")}
OURS = {"aws:RequestTag/ray-cluster-name": "qdmr-gpu"}
OTHERS = {"aws:RequestTag/ray-cluster-name": "production"}


class Template(yaml.SafeLoader):
    """CloudFormation's short forms: a reference becomes the name that it refers to, or the default
    of a parameter."""


def filled(loader: Template, form: str, node: yaml.Node) -> Any:
    value: Any = (
        loader.construct_scalar(node)
        if isinstance(node, yaml.ScalarNode)
        else loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]
    )
    if form == "If":
        return value[1]
    if form != "Sub":
        return value
    text, names = (value, {}) if isinstance(value, str) else value
    return re.sub(r"\$\{([\w:]+)\}", lambda match: names.get(match[1], match[1]), text)


Template.add_multi_constructor("!", filled)
STACK = yaml.load((AWS / "stack.yaml").read_text(), Template)
DEFAULTS = {name: about.get("Default") for name, about in STACK["Parameters"].items()}
WHERE = "arn:AWS::Partition:ec2:AWS::Region:AWS::AccountId"
INSTANCE, VOLUME = f"{WHERE}:instance/i-1", f"{WHERE}:volume/vol-1"
GROUP, TEMPLATE = f"{WHERE}:security-group/Nodes", f"{WHERE}:launch-template/WorkerTemplate"


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(role: str) -> list[dict[str, Any]]:
    policies = [
        thing["Properties"]
        for thing in STACK["Resources"].values()
        if thing["Type"] == "AWS::IAM::ManagedPolicy"
    ]
    return [
        statement
        for policy in policies
        if role in policy["Roles"]
        for statement in policy["PolicyDocument"]["Statement"]
    ]


def expected(value: Any) -> list[str]:
    """The values of a condition, of which a parameter may be a list."""
    return [each for name in listed(value) for each in str(DEFAULTS.get(name, name)).split(",")]


def holds(operator: str, found: Any, values: list[str]) -> bool:
    if found is None:
        return False
    compare = {
        "StringEquals": lambda value: found == value,
        "StringLike": lambda value: fnmatchcase(found, value),
        "NumericLessThanEquals": lambda value: found <= float(value),
    }[operator]
    return any(map(compare, values))


def may(role: str, action: str, resource: str, **context: Any) -> bool:
    """Whether a statement allows it. Every statement is an Allow, and the key of a condition that
    the request lacks doesn't hold."""
    return any(
        action in listed(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        and all(
            holds(operator, context.get(key), expected(value))
            for operator, keys in statement.get("Condition", {}).items()
            for key, value in keys.items()
        )
        for statement in statements(role)
    )


def worker_of(kind: str) -> dict[str, Any]:
    (worker,) = [
        each["node_config"]
        for name, each in CONFIGS[kind]["available_node_types"].items()
        if name != CONFIGS[kind]["head_node_type"]
    ]
    found: dict[str, Any] = worker
    return found


def test_the_policies_only_allow_and_use_no_condition_that_is_not_evaluated_here() -> None:
    for role in ("HeadRole", "WorkerRole"):
        assert statements(role)
        for statement in statements(role):
            assert statement["Effect"] == "Allow"
            assert not {"NotAction", "NotResource"} & statement.keys()
            known = {"StringEquals", "StringLike", "NumericLessThanEquals"}
            assert statement.get("Condition", {}).keys() <= known


def test_the_types_and_the_disk_are_those_of_the_clusters() -> None:
    types = {worker_of(kind)["InstanceType"] for kind in CONFIGS}
    assert set(DEFAULTS["WorkerTypes"].split(",")) == types
    disks = [disk for kind in CONFIGS for disk in worker_of(kind)["BlockDeviceMappings"]]
    assert {disk["Ebs"]["VolumeSize"] for disk in disks} == {DEFAULTS["LargestDisk"]}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_head_starts_tags_and_ends_the_clusters_workers(kind: str) -> None:
    worker, name = worker_of(kind), CONFIGS[kind]["cluster_name"]
    tag = {"aws:RequestTag/ray-cluster-name": name}
    (disk,) = worker["BlockDeviceMappings"]
    kept = {"aws:ResourceTag/ray-cluster-name": name}
    run = "ec2:RunInstances"
    assert may("HeadRole", run, INSTANCE, **tag, **{"ec2:InstanceType": worker["InstanceType"]})
    assert may("HeadRole", run, VOLUME, **{"ec2:VolumeSize": disk["Ebs"]["VolumeSize"]})
    assert may("HeadRole", run, GROUP)
    assert may("HeadRole", run, TEMPLATE)
    assert may("HeadRole", "ec2:CreateTags", INSTANCE, **tag, **{"ec2:CreateAction": run[4:]})
    assert may("HeadRole", "ec2:CreateTags", INSTANCE, **kept)
    assert may("HeadRole", "ec2:TerminateInstances", INSTANCE, **kept)
    passed = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert may("HeadRole", "iam:PassRole", "WorkerRole.Arn", **passed)


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "the largest GPUs": ("RunInstances", INSTANCE, {**OURS, "ec2:InstanceType": "p5.48xlarge"}),
    "a larger one of the family": (
        "RunInstances",
        INSTANCE,
        {**OURS, "ec2:InstanceType": "g5.48xlarge"},
    ),
    "a type in capitals": ("RunInstances", INSTANCE, {**OURS, "ec2:InstanceType": "G5.2XLARGE"}),
    "a pattern of types": ("RunInstances", INSTANCE, {**OURS, "ec2:InstanceType": "*"}),
    "no type": ("RunInstances", INSTANCE, OURS),
    "no name": ("RunInstances", INSTANCE, {"ec2:InstanceType": "g5.2xlarge"}),
    "another name": ("RunInstances", INSTANCE, {**OTHERS, "ec2:InstanceType": "g5.2xlarge"}),
    "a disk of 16 TB": ("RunInstances", VOLUME, {"ec2:VolumeSize": 16_384}),
    "a disk of any size": ("RunInstances", VOLUME, {}),
    "another network filter": ("RunInstances", f"{WHERE}:security-group/open", {}),
    "the head's template": ("RunInstances", f"{WHERE}:launch-template/HeadTemplate", {}),
    "a strange instance gets the name": ("CreateTags", INSTANCE, OURS),
    "a strange instance gets the name as a copy": (
        "CreateTags",
        INSTANCE,
        {**OURS, "ec2:CreateAction": "CreateVolume"},
    ),
    "a strange instance is ended": (
        "TerminateInstances",
        INSTANCE,
        {"aws:ResourceTag/ray-cluster-name": "production"},
    ),
    "an instance without a name is ended": ("TerminateInstances", INSTANCE, {}),
    "a disk is made": ("CreateVolume", VOLUME, {"ec2:VolumeSize": 1}),
    "instances by a fleet": ("CreateFleet", f"{WHERE}:fleet/f-1", OURS),
    "instances by a spot request": (
        "RequestSpotInstances",
        f"{WHERE}:spot-instances-request/s-1",
        OURS,
    ),
    "another type for an instance": (
        "ModifyInstanceAttribute",
        INSTANCE,
        {"aws:ResourceTag/ray-cluster-name": "qdmr-gpu"},
    ),
    "a network filter is opened": ("AuthorizeSecurityGroupIngress", GROUP, {}),
    "a template is changed": ("CreateLaunchTemplateVersion", TEMPLATE, {}),
}


@pytest.mark.parametrize("role", ["HeadRole", "WorkerRole"])
@pytest.mark.parametrize(("action", "resource", "context"), REFUSED.values(), ids=REFUSED.keys())
def test_no_role_may_do_more_on_ec2(
    action: str, resource: str, context: dict[str, Any], role: str
) -> None:
    assert not may(role, f"ec2:{action}", resource, **context)


ROLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "the head's own": ("PassRole", "HeadRole.Arn", {"iam:PassedToService": "ec2.amazonaws.com"}),
    "an administrator's": ("PassRole", "Admin", {"iam:PassedToService": "ec2.amazonaws.com"}),
    "to another service": (
        "PassRole",
        "WorkerRole.Arn",
        {"iam:PassedToService": "lambda.amazonaws.com"},
    ),
    "to nobody in particular": ("PassRole", "WorkerRole.Arn", {}),
    "a policy is attached": ("AttachRolePolicy", "HeadRole.Arn", {}),
    "a service's role of another kind": (
        "CreateServiceLinkedRole",
        "arn:AWS::Partition:iam::AWS::AccountId:role/aws-service-role/spot.amazonaws.com/x",
        {"iam:AWSServiceName": "organizations.amazonaws.com"},
    ),
}


@pytest.mark.parametrize("role", ["HeadRole", "WorkerRole"])
@pytest.mark.parametrize(("action", "resource", "context"), ROLES.values(), ids=ROLES.keys())
def test_no_role_passes_on_another(
    action: str, resource: str, context: dict[str, Any], role: str
) -> None:
    assert not may(role, f"iam:{action}", resource, **context)


def test_the_documents_count_vcpus_as_the_workers_have_them() -> None:
    text = (AWS.parent / "README.md").read_text()
    for kind, vcpus in (("gpu", 8), ("cpu", 16)):
        workers = CONFIGS[kind]["max_workers"]
        assert f"{workers} {'workers ' * (kind == 'gpu')}are {workers * vcpus}" in text
        assert re.search(rf"`{worker_of(kind)['InstanceType']}` (takes )?{vcpus}\b", text)
