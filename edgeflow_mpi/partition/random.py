"""Random valid plans: they are slow, and every later stage must run them rightly all the same."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.spans import EMPTY, Span, from_breakpoints


def random_plan(
    graph: Graph, needs: Needs, ranks: int, rng: Random, *, used: Sequence[int] | None = None
) -> Plan:
    """A plan that satisfies ``check_plan``, drawn from all kinds of them.

    Breakpoints are uneven and spans may be empty; undivided layers are placed anywhere, some
    with replicas; divided ones are partly recomputed (what the rank's own consumers need, or
    just any rows); some units send their boundary first; the order is any topological one.

    Parameters
    ----------
    ranks : the size of the plan.
    rng : the only source of chance.
    used : ranks (ascending) that may compute what is not pinned to rank 0; all by default.
    """
    among = tuple(range(ranks)) if used is None else tuple(used)
    layers: dict[str, LayerPlan] = {}
    for layer in reversed(graph.layers):
        if layer.pinned:
            layers[layer.name] = LayerPlan.whole(layer.rows, ranks, 0)
        elif layer.splits:
            owned = _owned(layer, ranks, among, rng)
            computed = owned
            if layer.combine is None and rng.random() < 0.5:
                computed = _computed(graph, needs, layer, owned, among, layers, rng)
            layers[layer.name] = LayerPlan(owned, computed)
        else:
            replicas = {rank for rank in among if rng.random() < 0.4}
            if layer.combine is not None or rng.random() < 0.5:
                replicas = set()
            owner = rng.choice(among)
            layers[layer.name] = LayerPlan.whole(layer.rows, ranks, owner, frozenset(replicas))
    ordered = {layer.name: layers[layer.name] for layer in graph.layers}
    early = rng.choice((0.0, 0.5))
    boundary_first = frozenset(
        (layer.name, rank)
        for layer in graph.layers
        for rank in among
        if layer.splits and not layer.pinned and rng.random() < early
    )
    order = _order(graph, rng)
    return Plan("random", ranks, ordered, order, boundary_first=boundary_first)


def random_partition(
    graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int], *, seed: int = 0
) -> Plan:
    """:func:`random_plan` as a partitioner; it reads nothing of the profile but its size."""
    return random_plan(graph, needs, len(profile.devices), Random(seed), used=ranks)


def _owned(layer: Layer, ranks: int, among: Sequence[int], rng: Random) -> tuple[Span, ...]:
    cuts = sorted(rng.randint(0, layer.rows) for _ in among[1:])
    spans = [EMPTY] * ranks
    for rank, span in zip(among, from_breakpoints((0, *cuts, layer.rows)), strict=True):
        spans[rank] = span
    return tuple(spans)


def _computed(
    graph: Graph,
    needs: Needs,
    layer: Layer,
    owned: Sequence[Span],
    among: Sequence[int],
    later: dict[str, LayerPlan],
    rng: Random,
) -> tuple[Span, ...]:
    """The owned spans, some extended by rows that other ranks compute as well."""
    found = list(owned)
    for rank in among:
        chance = rng.random()
        if chance < 0.4:
            for reader in graph.consumers[layer.name]:
                wanted = needs.of(reader, later[reader].computed[rank])
                at = graph.by_name[reader].inputs.index(layer.name)
                found[rank] = found[rank].hull(wanted[at])
        elif chance < 0.7 and owned[rank]:
            above, below = rng.randint(0, 2), rng.randint(0, 2)
            start, stop = owned[rank].start - above, owned[rank].stop + below
            found[rank] = Span.of(max(start, 0), min(stop, layer.rows))
        elif chance < 0.8:
            ends = sorted((rng.randint(0, layer.rows), rng.randint(0, layer.rows)))
            found[rank] = owned[rank].hull(Span.of(*ends))
    return tuple(found)


def _order(graph: Graph, rng: Random) -> tuple[str, ...]:
    """A random topological order of all layers."""
    waiting = {layer.name: len(layer.inputs) for layer in graph.layers}
    ready = [name for name, count in waiting.items() if not count]
    order = []
    while ready:
        name = ready.pop(rng.randrange(len(ready)))
        order.append(name)
        for reader in graph.consumers[name]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return tuple(order)
