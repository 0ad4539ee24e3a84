"""What `qdmr_ray/ray_compat.py` relies on in the Ray that is installed, a test for each part."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "qdmr_ray" / "ray_compat.py"
CALLBACKS = "ray.train.v2._internal.execution.callback"
POLICY = "ray.train.v2._internal.execution.failure_handling.DefaultFailurePolicy"
SCALING = "ray.train.v2._internal.execution.scaling_policy"
TRAINER = "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer"
CONTROLLER = "ray.train.v2._internal.execution.controller.TrainController"

# Each function or method that the package calls or overrides, with the parameters it counts on.
# "**": whatever is passed by name.
RELIED_ON = {
    f"{CALLBACKS}.ControllerCallback.after_controller_start": ("train_run_context",),
    f"{CALLBACKS}.ControllerCallback.on_controller_start_worker_group": (
        "scaling_config",
        "num_workers",
    ),
    f"{CALLBACKS}.ControllerCallback.before_controller_execute_failure_decision": (
        "failure_decision",
    ),
    f"{CALLBACKS}.WorkerGroupCallback.after_worker_group_start": ("worker_group",),
    f"{CALLBACKS}.WorkerGroupCallback.after_worker_group_training_start": ("worker_group",),
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.has_started": (),
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.shutdown": (),
    f"{POLICY}.__init__": ("failure_config",),
    f"{POLICY}.make_decision": ("training_failed_error",),
    f"{SCALING}.ElasticScalingPolicy.__init__": ("scaling_config",),
    f"{SCALING}.ElasticScalingPolicy.make_decision_for_running_worker_group": (
        "worker_group_state",
        "worker_group_status",
    ),
    f"{SCALING}.ElasticScalingPolicy.make_decision_for_non_running_worker_group": (),
    f"{SCALING}.NoopDecision": (),
    f"{TRAINER}._initialize_and_run_controller": ("**",),
    f"{CONTROLLER}.__init__": ("failure_policy", "scaling_policy", "callbacks"),
    f"{CONTROLLER}.abort": (),
    "ray._private.state.state.get_draining_nodes": (),
    "ray.data._internal.cluster_autoscaler.get_or_create_autoscaling_coordinator": (),
    "ray.data._internal.stats.get_or_create_stats_actor": (),
}


def resolved(name: str) -> Any:
    """The object with this dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"no module of {name}")


def private_names() -> set[str]:
    """Dotted names of what ray_compat.py imports or reaches for, where they are private."""
    names = set()
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return {n for n in names if n.startswith("ray.") and (".v2." in n or "._" in n)}


@pytest.mark.parametrize("name", sorted(RELIED_ON))
def test_ray_still_has(name: str) -> None:
    signature = inspect.signature(resolved(name))
    parameters = signature.parameters
    for wanted in RELIED_ON[name]:
        if wanted == "**":
            assert any(p.kind is p.VAR_KEYWORD for p in parameters.values()), signature
        else:
            assert wanted in parameters, signature
    # What the package doesn't pass must have a default.
    ours = {"self", *RELIED_ON[name]}
    if not name.endswith("TrainController.__init__"):
        flexible = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        missing = [
            p.name
            for p in parameters.values()
            if p.name not in ours and p.default is p.empty and p.kind not in flexible
        ]
        assert not missing, signature


def test_every_private_part_is_compared() -> None:
    """A part that is added to ray_compat.py gets its line here."""
    compared = tuple(RELIED_ON)
    unknown = [n for n in private_names() if not any(c.startswith(n) for c in compared)]
    # The way to a module's function is no part of its own.
    assert not [n for n in unknown if not any(c.startswith(f"{n}.") for c in compared)]
    assert private_names()


def test_callbacks_that_are_no_user_callbacks_are_passed_on() -> None:
    """Ray Train hands them to its controller; one that filtered them would disarm node_wait."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from qdmr_ray.ray_compat import ControllerCallback

    class Ours(ControllerCallback):
        pass

    ours = Ours()
    trainer = TorchTrainer(
        lambda: None,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(callbacks=[ours]),  # type: ignore[list-item]
    )
    assert ours in trainer._create_default_callbacks()  # type: ignore[attr-defined]
