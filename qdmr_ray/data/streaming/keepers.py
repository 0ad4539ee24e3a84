"""Cuts the crops of a shard on a node that keeps a copy of it, for loading tasks anywhere.

Each node copies the shards that a placement gives to it, and an actor on it cuts crops out of them
for the others. So a cluster reads a shard from the store once for each copy and not once for each
node, and what fits the disks of all nodes together is read from there no more.

Actors cut, and not tasks of tasks: Ray ends processes that are idle beyond a node's CPUs, so that a
task on another node waited 2 s for a process and for the dataset to be opened again and again,
where a call of an actor takes some milliseconds. Actors take no CPU of Ray's, so nobody waits for
one.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnschedulableError, ObjectLostError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdmr_ray.data.format.placement import NOBODY, Placement
from qdmr_ray.data.streaming.crops import CropRequest, Cutter, cutter_of_process
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location

# The keeper, its process or its node is gone, or the crops went with the node.
_LOST = (RayActorError, ActorUnschedulableError, ObjectLostError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keepers:
    """The nodes that keep copies. ``names`` maps the ids of Ray's nodes to those of ``placement``,
    ``actors`` are in the order of its names and have the methods of :class:`Keeper`."""

    placement: Placement
    names: Mapping[str, str]
    actors: tuple[Any, ...]

    def cut(self, request: CropRequest, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what ``Cutter.cut`` does, cut where the shards are kept; in this process where
        that is here or nowhere, or the keeper is lost."""
        here = self.names.get(ray.get_runtime_context().get_node_id(), "")
        cutter = cutter_of_process(request, replace(self.placement, here=here))
        asked = cutter.ask(positions)
        # The rows of each set by the number of the node that is asked for them.
        rows = {
            number: {name: np.flatnonzero(nodes == number) for name, nodes in asked.items()}
            for number in np.unique(np.concatenate([*asked.values()])).tolist()
        }
        wanted = {
            number: {name: positions[found] for name, found in sets.items() if len(found)}
            for number, sets in rows.items()
        }
        own = wanted.pop(NOBODY, {})
        # All are at work before any is waited for.
        answers = {n: self.actors[n].cut.remote(sets) for n, sets in wanted.items()}
        columns = {"positions": positions}
        if own:
            _put(columns, rows[NOBODY], _cut_sets(cutter, own))
        for number, answer in answers.items():
            try:
                found = ray.get(answer)
            except _LOST:
                _tell_of(self.placement.names[number])
                found = _cut_sets(cutter, wanted[number])
            if isinstance(found, QdmrError):
                raise found
            _put(columns, rows[number], found)
        return columns


class Keeper:
    """An actor with these methods cuts crops on its node for others. Several threads call it."""

    def __init__(self, request: CropRequest, placement: Placement) -> None:
        self._request, self._placement = request, placement
        self._lock = threading.Lock()

    def cut(
        self, positions: Mapping[str, np.ndarray]
    ) -> dict[str, dict[str, np.ndarray]] | QdmrError:
        """Returns the columns of ``Cutter.cut_set`` for the positions of each set, or the error
        that came in their place, which an exception would wrap in one of Ray's."""
        try:
            with self._lock:
                cutter = cutter_of_process(self._request, self._placement)
            return _cut_sets(cutter, positions)
        except QdmrError as error:
            return error


def keepers_of_cluster(request: CropRequest) -> Keepers | None:
    """Starts a keeper on each node; returns ``None`` where every node is to read for itself: with
    one node, with a dataset that lies on a disk, and where each keeps everything."""
    settings = request.settings
    location = open_location(settings.path, endpoint=settings.s3_endpoint)
    if not location.is_s3 or not settings.cache_bytes:
        return None
    # Nodes of one address share a machine, and its disk. An address outlives Ray, as copies do; a
    # node's id doesn't. A node without CPUs is one that is kept free of work.
    alive = [node for node in ray.nodes() if node["Alive"]]
    ids = {n["NodeManagerAddress"]: n["NodeID"] for n in alive if n["Resources"].get("CPU")}
    everywhere = request.bytes <= settings.cache_bytes and len(ids) <= settings.cache_copies
    if len(ids) < 2 or everywhere:
        return None
    placement = Placement(tuple(sorted(ids)), settings.cache_copies)
    return Keepers(
        placement,
        {node["NodeID"]: node["NodeManagerAddress"] for node in alive},
        tuple(
            ray.remote(Keeper)
            .options(
                num_cpus=0,
                max_concurrency=settings.requests,
                # Calls of an actor that Ray wants to restart on a node that is gone wait for ever.
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(ids[name], soft=False),
            )
            .remote(request, replace(placement, here=name))
            for name in placement.names
        ),
    )


def _cut_sets(
    cutter: Cutter, positions: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    return {name: cutter.cut_set(name, places) for name, places in positions.items()}


def _put(
    columns: dict[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    found: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Puts the columns that were found for each set into their ``rows`` of ``columns``."""
    count = len(columns["positions"])
    for name, parts in found.items():
        for column, part in parts.items():
            if column not in columns:
                columns[column] = np.empty((count, *part.shape[1:]), dtype=part.dtype)
            columns[column][rows[name]] = part


@lru_cache(maxsize=1024)
def _tell_of(name: str) -> None:
    """Says once in a process that a node doesn't answer."""
    _log.warning("%s doesn't answer: what it keeps of the dataset is read from the store", name)
