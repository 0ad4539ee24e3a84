"""The same work on many items: in this process, or as Ray tasks on all nodes that see the files.

    tasks = Tasks("packing", start_ray=ensure_ray, say=print)
    for place, result in tasks.results(write, jobs, sees=Sees.of(photographs), memory=needed):
        ...

Without a running Ray the items are done here, one after another. Otherwise every node with a CPU
takes part if it sees the files: those in a store are seen by all, those on a disk by the driver's
node and by each other one that finds the same files under the same paths.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.storage import AnyPath, Location, StorePath, location_of
from qdmr_ray.storage.claims import Claim

Item = TypeVar("Item")
# The bytes of a task's process before it has read a photograph.
TASK_MEMORY = 300 * 10**6
# So many tasks wait at a time at least: an autoscaler starts nodes for those that wait.
_WAITING = 4096
# Results are fetched in groups; asking for each alone costs Ray 10 ms with thousands of tasks.
_GROUP, _GROUP_SECONDS = 64, 1.0
# A node whose disk doesn't answer for so long takes no part.
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Sees:
    """What a node must find to take part: local files by path, each with its version, and the claim
    on the folder that is written to, unless that lies in a store."""

    files: tuple[tuple[str, tuple[int, int | str]], ...] = ()
    folder: str | None = None
    holds: Callable[[], bool] = field(default=lambda: True, compare=False)

    @classmethod
    def of(
        cls, photographs: Sequence[AnyPath], out: tuple[Location, Claim] | None = None
    ) -> "Sees":
        """Describes the nodes that find these files, which stand for all in their folders, and see
        that ``out`` is claimed."""
        local = [location_of(path) for path in photographs if not isinstance(path, StorePath)]
        files = tuple((place.path, place.version()) for place in local)
        if out is None or out[0].is_s3:
            return cls(files)
        return cls(files, out[0].path, out[1].holds)

    @property
    def anywhere(self) -> bool:
        """Whether every node sees all, because all lies in stores."""
        return not self.files and self.folder is None

    def missing(self) -> str | None:
        """Returns the first folder that this machine doesn't see, or sees with other files."""
        for path, version in self.files:
            try:
                same = Location(path).version() == version
            except QdmrError:
                same = False
            if not same:
                return os.path.dirname(path)
        try:
            return None if self.holds() else self.folder
        except QdmrError:
            return self.folder


@dataclass(frozen=True)
class _Nodes:
    """The nodes that take part: their ids, ``None`` for all, those that join later included; the
    bytes of memory of the largest, ``None`` where no node is there yet; their CPUs."""

    ids: tuple[str, ...] | None
    memory: int | None
    cpus: float


class Tasks:
    """Does the items of a command whose ``work`` is called so in messages, such as "packing".
    ``start_ray`` is called for work that is worth the start; ``say`` receives a line when some
    nodes can't take part."""

    def __init__(
        self,
        work: str,
        start_ray: Callable[[], None] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._work, self._start_ray, self._say = work, start_ray, say
        self._said: set[str] = set()

    def results(
        self,
        function: Callable[[Item], Any],
        items: Sequence[Item],
        *,
        sees: Sees,
        is_large: bool = False,
        memory: Callable[[Item], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yields each item's place and ``function``'s result as it is finished, in any order.
        ``is_large`` says that starting Ray pays; ``memory`` returns the bytes that an item takes.
        Raises ``function``'s errors, and QdmrError where nodes were lost too often."""
        if is_large and len(items) > 1 and self._start_ray is not None:
            self._start_ray()
        nodes = self._nodes(sees) if len(items) > 1 and ray_runs() else None
        if nodes is None:
            yield from ((place, function(item)) for place, item in enumerate(items))
            return
        yield from self._on(nodes, function, items, memory)

    def _on(
        self,
        nodes: _Nodes,
        function: Callable[[Item], Any],
        items: Sequence[Item],
        memory: Callable[[Item], int] | None,
    ) -> Iterator[tuple[int, Any]]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        options: dict[str, Any] = {"name": self._work}
        if nodes.ids is not None:
            options["label_selector"] = {"ray.io/node-id": f"in({','.join(nodes.ids)})"}
        task = ray.remote(_call)
        # Whatever the function holds travels to each node once.
        shared = ray.put(function)
        waiting = iter(enumerate(items))
        running: dict[Any, int] = {}
        limit = max(_WAITING, 2 * int(nodes.cpus))

        def hand_out() -> None:
            for place, item in waiting:
                if memory is not None and nodes.memory is not None:
                    # What is larger than any node runs alone there: a task that no node could ever
                    # take would wait for ever.
                    options["memory"] = min(memory(item), nodes.memory)
                running[task.options(**options).remote(shared, item)] = place
                if len(running) >= limit:
                    return

        try:
            hand_out()
            while running:
                ready, _ = ray.wait(
                    list(running), num_returns=min(_GROUP, len(running)), timeout=_GROUP_SECONDS
                )
                for reference in ready:
                    result = ray.get(reference)
                    yield running.pop(reference), result
                hand_out()
        except RayTaskError as error:
            # Raises the user's error without the remote traceback around it.
            if isinstance(error.cause, QdmrError):
                raise error.cause from None
            raise
        except RayError as error:
            again = "run the same command again, which goes on with what is missing"
            raise QdmrError(
                f"{self._work}: a task was lost ({one_line(error)}); {again}"
            ) from error
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _nodes(self, sees: Sees) -> _Nodes | None:
        """Returns the nodes that take part; ``None`` where this process has to do it."""
        import ray

        # The head of a cluster may have no CPUs.
        able = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
        able = {node: resources for node, resources in able.items() if resources.get("CPU", 0) >= 1}
        part = set(able)
        if not sees.anywhere:
            here = ray.get_runtime_context().get_node_id()
            unseen = _unseen([node for node in able if node != here], sees)
            part -= unseen.keys()
            for folder in sorted(set(unseen.values())):
                self._tell(folder, list(unseen.values()).count(folder), len(able), bool(part))
            if not part:
                return None
        resources = [able[node] for node in part]
        return _Nodes(
            ids=None if sees.anywhere else tuple(sorted(part)),
            memory=max((int(found.get("memory", 0)) for found in resources), default=None),
            cpus=sum(found["CPU"] for found in resources),
        )

    def _tell(self, folder: str, without: int, nodes: int, anywhere: bool) -> None:
        rest = f"on the other {nodes - without}" if anywhere else "in this process alone"
        line = (
            f"{without} of {nodes} nodes don't see {folder}: {self._work} {rest}; a folder that "
            "all nodes share, or s3://…, lets all take part"
        )
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def ray_runs() -> bool:
    """Whether this process has a Ray. One that runs has been imported already; importing it here
    would cost two seconds."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _unseen(nodes: Sequence[str], sees: Sees) -> dict[str, str]:
    """Asks each node what it doesn't see; returns the folder by node, of those that lack one. A
    node that doesn't answer, or is lost, lacks the first."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Without a CPU, a task runs at once on a node that is busy.
    ask = ray.remote(num_cpus=0, max_retries=0)(Sees.missing)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            sees
        ): node
        for node in nodes
    }
    first = os.path.dirname(sees.files[0][0]) if sees.files else str(sees.folder)
    unseen = dict.fromkeys(nodes, first)
    if not asked:
        return unseen
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    for reference in ready:
        try:
            missing = ray.get(reference)
        except RayError:
            continue
        if missing is None:
            del unseen[asked[reference]]
        else:
            unseen[asked[reference]] = missing
    for reference in late:
        ray.cancel(reference, force=True)
    return unseen
