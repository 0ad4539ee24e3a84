"""Every part of Ray that Ray doesn't promise to keep, its purpose, and what is lost without it. No
other file of the package imports from ``ray.train.v2``, ``_internal`` or a name with a leading
underscore, or reaches for one by attribute (``tests/test_rooms.py``). ``tests/test_ray_compat.py``
compares these parts with the installed Ray, and names the part that a newer Ray has changed."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer

# Ray Train's public callbacks hear only of reports and of workers' errors, and no public call ends
# a training from outside. Without these two a user loses scaling.node_wait (Ray Train counts failed
# starts over the whole run instead); a Ctrl-C and a Tune scheduler that free what a training holds
# (a placement group outlives its controller: ray-project/ray #54305); and the places of workers
# that Ray Train forgets when another one dies while they start. Ray passes callbacks of these
# classes on deliberately ("custom workarounds", DataParallelTrainer._create_default_callbacks).
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

# The base of LostWhileStarting, which counts a worker that is lost between its start and its first
# order among the failures of workers. Ray Train takes that loss for an error of its own, which ends
# the run whatever scaling.max_failures says: one of 17 runs with two random kills each ended so
# (tests/benchmarks/README.md, "Kills"). No issue of Ray's names it.
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

# The base of SavedResizes, which has the workers save a checkpoint before there are more or fewer
# of them. Ray Train tells no worker of a resize, and the only hook before one
# (ControllerCallback.before_controller_execute_resize_decision) would have to keep the controller
# waiting, deaf to workers that end or fail and to a Ctrl-C. Without this part, up to
# logging.checkpoint_interval iterations are done again after each resize.
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision


class TrainerWithPolicies(TorchTrainer):
    """A TorchTrainer whose controller asks ``failure_policy`` what to do after a failure, and
    ``scaling_policy``, if there is one, how many workers there are to be. ``FailureConfig`` and
    ``ScalingConfig`` have numbers but no policies. Without this class Ray Train's own ones decide:
    a worker that is lost just before it begins ends the run, and a resize repeats iterations."""

    def __init__(
        self,
        *arguments: Any,
        failure_policy: DefaultFailurePolicy,
        scaling_policy: ElasticScalingPolicy | None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._failure_policy, self._scaling_policy = failure_policy, scaling_policy

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = self._failure_policy
        if self._scaling_policy is not None:
            arguments["scaling_policy"] = self._scaling_policy
        # The annotations are those of an older trainer and lack the argument.
        return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]


def abort(controller: Any, *, timeout: float) -> None:
    """Ends a training, its workers and their placement group. ``controller`` is the handle of Ray
    Train's controller, an actor of a private class. Otherwise only Ray Train's answer to Ctrl-C
    calls this method; that answer needs a main thread, stays in place when the training has ended,
    and reports an interruption as a success. Raises RayError where the controller is gone already,
    or doesn't answer for ``timeout`` seconds."""
    ray.get(controller.abort.remote(), timeout=timeout)


def draining_nodes() -> set[str]:
    """Returns the ids of the nodes that are about to be taken away.
    ``ray.train.get_preemption_info`` tells only workers of Ray Train, and a sweep's trial with a
    single worker trains in its own process; ``ray.util.state`` needs a dashboard that the node can
    reach. Without this, such a trial on a drained node repeats the iterations after its newest
    checkpoint. The call is one for Ray's own libraries (ray-project/ray #42982)."""
    return set(ray._private.state.state.get_draining_nodes())


def start_data_actors_here() -> None:
    """Starts Ray Data's two lasting actors on this node. The first process that needs one starts it
    on its own node, where it stays until the cluster ends. If that were a training worker, the
    autoscaler would never give back the worker's node, which costs its price for as long as the
    cluster runs, although the actors take no CPU (ray-project/ray #64703 is the same for one of Ray
    Train's). No public call starts them without running a task, for which a cluster without CPUs
    would first have to grow."""
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()
