"""Where layers that cannot be divided run.

A *chain* is a maximal run of undivided, unpinned layers in which each is the only reader of
the one before. It stays together: on the device where its result is earliest wherever it is
read, or on every rank that reads it, when computing a small result many times is sooner than
sending it (in a squeeze-and-excitation block every rank adds the pooled summands and runs
two tiny layers itself, rather than waiting for somebody to do so and send the scale back).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.plan import LayerPlan
from edgeflow_mpi.partition.timeline import Timeline
from edgeflow_mpi.spans import Span


def chain_from(graph: Graph, head: Layer) -> tuple[Layer, ...]:
    """``head``, which is not divided, and the undivided layers that only prolong it."""
    chain = [head]
    while len(readers := graph.consumers[chain[-1].name]) == 1:
        reader = graph.by_name[readers[0]]
        if reader.splits or reader.pinned:
            break
        chain.append(reader)
    return tuple(chain)


def place_chain(
    timeline: Timeline, head: Layer, ranks: Sequence[int], placed: Mapping[str, LayerPlan]
) -> dict[str, LayerPlan]:
    """Plans of ``head`` and the rest of its chain.

    Parameters
    ----------
    timeline : what is planned so far, all inputs of ``head`` included.
    head : a layer that is neither divided nor pinned nor in ``placed``.
    ranks : the ranks to choose from.
    placed : plans of layers that earlier chains have settled already.

    Returns
    -------
    dict
        A plan for each layer of the chain that ``placed`` does not hold. Ties (to the
        nanosecond) go to a rank that reads the result, then to the one that has it first, then
        to the lowest.
    """
    chain = [layer for layer in chain_from(timeline.graph, head) if layer.name not in placed]
    readers = _reading_ranks(timeline, chain[-1], ranks, placed)
    finish_s = {rank: _chain_finish_s(timeline, chain, rank) for rank in ranks}
    tail = chain[-1]
    share = len(readers) if tail.out.rows > 1 and readers else 1
    size_bytes = tail.out.size_bytes // share

    def there_s(owner: int, replicas: frozenset[int] = frozenset()) -> float:
        """When the result is at every rank that reads it."""
        later_s = [
            finish_s[reader]
            if reader in replicas
            else finish_s[owner] + timeline.message_s(owner, reader, size_bytes)
            for reader in readers - {owner}
        ]
        return max([finish_s[owner], *later_s])

    owner = min(
        ranks, key=lambda rank: (round(there_s(rank), 9), rank not in readers, finish_s[rank], rank)
    )
    replicas: frozenset[int] = frozenset()
    able = readers.intersection(ranks)
    if len(able) > 1 and not any(layer.combine for layer in chain):
        first = min(able, key=lambda rank: (finish_s[rank], rank))
        if there_s(first, able) < there_s(owner):
            owner, replicas = first, able
    return {
        layer.name: LayerPlan.whole(layer.rows, timeline.ranks, owner, replicas) for layer in chain
    }


def _chain_finish_s(timeline: Timeline, chain: Sequence[Layer], rank: int) -> float:
    """When ``rank`` would have run the whole chain, inputs not planned yet left out."""
    at_s = 0.0
    for layer in chain:
        at_s = max(at_s, timeline.start_s(layer, rank, Span(0, layer.rows)))
        at_s += timeline.cost(layer, rank).seconds(layer.rows)
    return at_s


def _reading_ranks(
    timeline: Timeline, tail: Layer, ranks: Sequence[int], placed: Mapping[str, LayerPlan]
) -> frozenset[int]:
    """Ranks that will read the result of ``tail``, as far as can be told."""
    found: set[int] = set()
    for name in timeline.graph.consumers[tail.name]:
        reader = timeline.graph.by_name[name]
        if reader.pinned:
            found.add(0)
        elif name in placed:
            found.update(i for i, rows in enumerate(placed[name].computed) if rows)
        elif reader.splits:
            found.update(_expected_ranks(timeline, reader, ranks))
    return frozenset(found)


def _expected_ranks(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> Sequence[int]:
    """Ranks that will own rows of ``layer``: those that own rows of a divided input of it."""
    owners = {
        rank
        for name in layer.inputs
        if name in timeline.plans and timeline.graph.by_name[name].splits
        for rank, rows in enumerate(timeline.plans[name].owned)
        if rows and rank in ranks
    }
    return sorted(owners) or ranks
