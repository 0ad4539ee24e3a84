"""Divides a batch among workers, and each worker's samples into weighted micro-batches.

The batch doesn't depend on the number of workers: fewer workers take more samples each, in more
micro-batches, so that none needs more memory. Each micro-batch's mean loss is weighted by its
number of samples, so that the gradients, averaged over the workers, are those of the batch's mean.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One worker's samples: ``first`` .. ``first + count - 1`` of a batch of ``total``.

    ``micro_batches`` are the sizes of those that pass through the networks in turn, ``weights`` the
    factors on their mean losses. All workers have equally many, since they exchange gradients and
    estimate spectral norms in step; size 0 means that the worker has no sample left.
    """

    total: int
    first: int
    count: int
    micro_batches: tuple[int, ...]
    weights: tuple[float, ...]


def share_of(total: int, *, micro_batch: int, rank: int = 0, world_size: int = 1) -> Share:
    """Returns the share of worker ``rank``, in micro-batches of at most ``micro_batch`` samples;
    raises ValueError where there are more workers than samples."""
    if not 0 <= rank < world_size <= total or micro_batch < 1:
        raise ValueError(f"rank {rank} of {world_size}, batch {total}, micro-batch {micro_batch}")
    least, more = divmod(total, world_size)
    count = least + (rank < more)
    pieces = -(-(least + bool(more)) // micro_batch)
    sizes = tuple(count // pieces + (i < count % pieces) for i in range(pieces))
    weights = tuple(size * world_size / total for size in sizes)
    return Share(total, rank * least + min(rank, more), count, sizes, weights)
