"""Flat arrays of what never changes while plans for one graph and profile are compared."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from edgeflow_mpi.cluster.profile import LayerCost, Profile
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.flow import transfer_bytes
from edgeflow_mpi.partition.simulator.jit import Floats, Ints, floats, ints
from edgeflow_mpi.spans import Span


class Problem(NamedTuple):
    """A graph on a profile. Layers are numbered as in the graph; n is the number of ranks.

    Layer l reads the layers ``source[e]`` over the edges e from ``in_at[l]`` to
    ``in_at[l + 1]``. Row r of it needs rows ``low[need_at[e] + r]`` to ``high[need_at[e] + r]``
    of the source. It is read by ``reader[k]`` over edge ``reader_edge[k]``, k from
    ``out_at[l]`` to ``out_at[l + 1]``. A message of r rows of it has ``message_bytes[l] +
    r * row_bytes[l]`` bytes. ``summand``, ``sends_early`` (whether boundary rows may be computed
    first), ``undivided`` (whether it is computed in full or not at all), ``pinned``, ``splits``
    and ``answer`` are 0 or 1. ``work_s[work_at[l * n + i] + r]`` is what r rows of it cost on rank
    i, and ``latency_s[i * n + j]`` and ``bandwidth`` the link from i to j.
    """

    ranks: int
    layers: int
    shared: int
    rows: Ints
    summand: Ints
    sends_early: Ints
    undivided: Ints
    pinned: Ints
    splits: Ints
    leads: Ints
    answer: Ints
    message_bytes: Floats
    row_bytes: Floats
    in_at: Ints
    source: Ints
    need_at: Ints
    low: Ints
    high: Ints
    out_at: Ints
    reader: Ints
    reader_edge: Ints
    work_at: Ints
    work_s: Floats
    latency_s: Floats
    bandwidth: Floats
    message_cpu_s: Floats


def compile_problem(
    graph: Graph, needs: Needs, profile: Profile, *, measured: bool = False
) -> Problem:
    """The arrays of ``graph`` on ``profile``; costs are ``measured`` ones or those of lines.

    Raises
    ------
    ProfileError
        The profile does not cover a layer, a device or a link.
    """
    ranks = len(profile.devices)
    number = {layer.name: i for i, layer in enumerate(graph.layers)}
    low: list[int] = []
    high: list[int] = []
    need_at: list[int] = []
    edge_of: dict[tuple[str, str], int] = {}
    for layer in graph.layers:
        for name, (first, last) in zip(layer.inputs, needs.table(layer.name), strict=True):
            edge_of[name, layer.name] = len(need_at)
            need_at.append(len(low))
            low += first.tolist()
            high += last.tolist()
    readers = [(layer.name, name) for layer in graph.layers for name in graph.consumers[layer.name]]
    work_at, work_s = _work(graph, profile, measured)
    links = [
        None if i == j else profile.links.get((i, j)) for i in range(ranks) for j in range(ranks)
    ]
    for at, link in enumerate(links):
        source, dest = divmod(at, ranks)
        if link is None and source != dest:
            raise ProfileError(
                f"the profile has no link from rank {source} to rank {dest}; "
                "measure it again with all ranks"
            )
    return Problem(
        ranks=ranks,
        layers=len(graph.layers),
        shared=int(profile.network == "shared"),
        rows=ints(layer.rows for layer in graph.layers),
        summand=ints(layer.combine is not None for layer in graph.layers),
        sends_early=ints(layer.sends_early for layer in graph.layers),
        undivided=ints(not layer.divisible for layer in graph.layers),
        pinned=ints(layer.pinned for layer in graph.layers),
        splits=ints(layer.splits for layer in graph.layers),
        leads=ints(_leads(graph)),
        answer=ints(layer.kind == "output" for layer in graph.layers),
        message_bytes=floats(
            transfer_bytes(layer, Span(0, 1)) if layer.combine else 0 for layer in graph.layers
        ),
        row_bytes=floats(
            0 if layer.combine else transfer_bytes(layer, Span(0, 1)) for layer in graph.layers
        ),
        in_at=ints(accumulate((len(layer.inputs) for layer in graph.layers), initial=0)),
        source=ints(number[name] for layer in graph.layers for name in layer.inputs),
        need_at=ints(need_at),
        low=ints(low),
        high=ints(high),
        out_at=ints(
            accumulate((len(graph.consumers[layer.name]) for layer in graph.layers), initial=0)
        ),
        reader=ints(number[reader] for _, reader in readers),
        reader_edge=ints(edge_of[edge] for edge in readers),
        work_at=ints(work_at),
        work_s=floats(work_s),
        latency_s=floats(link.latency_s if link else 0.0 for link in links),
        bandwidth=floats(link.bandwidth_bytes_s if link else 1.0 for link in links),
        message_cpu_s=floats(profile.message_cpu_s or [0.0] * ranks),
    )


def _work(graph: Graph, profile: Profile, measured: bool) -> tuple[list[int], list[float]]:
    """Where the costs of every layer on every rank begin, and the costs of 0, 1, 2, ... rows."""
    places: list[int] = []
    found: list[float] = []
    known: dict[tuple[LayerCost, int], int] = {}
    for layer in graph.layers:
        for rank in range(len(profile.devices)):
            cost = layer_cost(graph, profile, layer, rank)
            seconds = cost.measured_seconds if measured else cost.seconds
            if (cost, layer.rows) not in known:
                known[cost, layer.rows] = len(found)
                found += [seconds(rows) for rows in range(layer.rows + 1)]
            places.append(known[cost, layer.rows])
    return places, found


def _leads(graph: Graph) -> Iterator[bool]:
    """For every two layers, in graph order, whether the second one depends on the first."""
    behind: dict[str, set[str]] = {}
    for layer in reversed(graph.layers):
        readers = graph.consumers[layer.name]
        behind[layer.name] = set(readers).union(*(behind[name] for name in readers))
    for layer in graph.layers:
        for other in graph.layers:
            yield other.name in behind[layer.name]
