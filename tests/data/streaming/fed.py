"""Streams that Ray Data feeds, as a training's workers use them, in threads of one process."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import ray

from qdmr_ray.data.streaming.feed import Feed, new_pace
from qdmr_ray.data.streaming.plan import Portion
from qdmr_ray.data.streaming.stream import Batch, DataSettings, FedStream, InProcessStream


def fed_streams(
    data: DataSettings,
    *,
    workers: int = 1,
    nodes: Sequence[str] = (),
    start_iteration: int = 0,
    **samples: Any,
) -> list[FedStream]:
    """The streams of ``workers`` workers that share each batch equally; ``samples`` are those of a
    stream of all of them together. Loading runs on ``nodes``, or this one."""
    whole = InProcessStream(data, start_iteration=start_iteration, **samples)
    total = whole.portion.total
    assert total % workers == 0
    count = total // workers
    feed = Feed(
        name="samples",
        request=whole.request,
        portions=lambda n: [Portion(rank * count, count, total) for rank in range(n)],
        size=whole.block_size,
        end=samples["end_iteration"],
        pace=new_pace(),
    )
    here = ray.get_runtime_context().get_node_id()
    shards = feed.split(feed.rounds(start_iteration), workers, nodes or [here])
    return [
        FedStream(
            data,
            connect=lambda _, shard=shard: shard,
            reached=partial(feed.pace.reach.remote, rank, workers),
            start_iteration=start_iteration,
            **(samples | {"batch_size": count, "first": rank * count, "total": total}),
        )
        for rank, shard in enumerate(shards)
    ]


def received(streams: list[FedStream]) -> list[list[Batch]]:
    """All batches of each stream; Ray Data wants all of them to be read at the same time."""

    def read(stream: FedStream) -> list[Batch]:
        with closing(stream):
            return list(stream)

    with ThreadPoolExecutor(len(streams)) as threads:
        return list(threads.map(read, streams))
