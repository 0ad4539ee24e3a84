"""Says which nodes of a cluster keep copies of which shards: arithmetic, no files, no Ray.

A shard is kept by the nodes whose names, multiplied by its checksum, give the highest numbers
(rendezvous hashing: Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6, 1998). Whoever
knows the names comes to the same answer without asking anybody, and when one of n nodes leaves or
one joins, about 1/n of the copies move and all others stay where they are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdmr_ray.data.format.manifest import ShardEntry

# Stands where a shard has no keeper, or a process reads a record by itself.
NOBODY = -1


@dataclass(frozen=True)
class Placement:
    """Each shard is kept by ``copies`` of the nodes called ``names``, as seen from the one called
    ``here`` (a node that keeps nothing, when that isn't one of them). Nodes are numbered by their
    place in ``names``."""

    names: tuple[str, ...]
    copies: int
    here: str = ""

    def keepers(self, shards: Sequence[ShardEntry], room: int) -> np.ndarray:
        """Returns the numbers of each shard's keepers, int64 (shards, c) with as many columns as a
        shard has copies at most, ``NOBODY`` where it has fewer. No node keeps more than ``room``
        bytes; where that isn't enough for all copies, every shard gets its first one before any
        gets its second."""
        # Odd factors lose nothing of the checksum. 0 marks nodes that can't take the copy.
        factors = _numbers(self.names) | np.uint64(1)
        weights = _numbers([shard.sha256 for shard in shards])[:, None] * factors
        left = np.full(len(factors), float(room))
        copies = min(self.copies, len(factors))
        keepers = np.full((len(shards), copies), NOBODY, dtype=np.int64)
        for copy in range(copies):
            for number, shard in enumerate(shards):
                fitting = np.where(left >= shard.bytes, weights[number], np.uint64(0))
                best = int(fitting.argmax())
                if fitting[best]:
                    keepers[number, copy] = best
                    weights[number, best] = 0
                    left[best] -= shard.bytes
        return keepers

    def keeps(self, keepers: np.ndarray) -> np.ndarray:
        """Tells for each row of ``keepers`` whether this node is among them, bool (n,)."""
        if self.here not in self.names:
            return np.zeros(len(keepers), dtype=bool)
        kept: np.ndarray = (keepers == self.names.index(self.here)).any(axis=1)
        return kept

    def ask(self, keepers: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns whom this node asks for the records whose shards are kept by ``keepers``, int64
        (n, c): int64 (n,), ``NOBODY`` for those that it reads by itself. A shard's keepers
        take turns with the global ``positions``, int64 (n,)."""
        # A shard's keepers stand before the places without one.
        counts = np.maximum((keepers != NOBODY).sum(axis=1), 1)
        chosen = keepers[np.arange(len(keepers)), positions % counts]
        return np.where(self.keeps(keepers), NOBODY, chosen)


def _numbers(texts: Sequence[str]) -> np.ndarray:
    """Returns a number of each text that looks random, uint64 (n,)."""
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)
