"""What the search varies, and the plan that follows from it.

Spans that are computed are not varied by themselves. A unit has two marks that say whether it
computes rows that its rank needs but does not own, above and below what it owns, or receives
them. Computed spans then follow from the readers' in reverse topological order, so that every
combination of breakpoints and marks is a valid plan.
"""

from __future__ import annotations

from typing import NamedTuple

from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.simulator.jit import Ints, inlined, ints, part
from edgeflow_mpi.partition.simulator.problem import Problem
from edgeflow_mpi.partition.simulator.state import Choice, new_choice
from edgeflow_mpi.spans import Span, from_breakpoints

ABOVE = 1
"""Compute the needed rows above the owned ones."""
BELOW = 2
"""Compute the needed rows below the owned ones."""


class Genes(NamedTuple):
    """A point of the search: a choice whose ``start`` and ``stop`` follow from the rest.

    ``halo[l * n + i]`` are the marks ABOVE and BELOW of layer l on rank i. A rank that owns
    nothing of a layer computes what it needs of it when both are set; a layer that cannot be
    divided is computed in full by ranks that need it and have any mark.
    """

    choice: Choice
    halo: Ints


def new_genes(problem: Problem) -> Genes:
    return Genes(new_choice(problem), ints([0] * (problem.layers * problem.ranks)))


@part
def copy_genes(problem: Problem, origin: Genes, to: Genes) -> None:
    """Make ``to`` equal to ``origin``."""
    for k in range(len(origin.choice.cut)):
        to.choice.cut[k] = origin.choice.cut[k]
    for k in range(len(origin.halo)):
        to.halo[k] = origin.halo[k]
        to.choice.first[k] = origin.choice.first[k]
        to.choice.start[k] = origin.choice.start[k]
        to.choice.stop[k] = origin.choice.stop[k]
    for k in range(problem.layers):
        to.choice.order[k] = origin.choice.order[k]
        to.choice.position[k] = origin.choice.position[k]


def set_genes(to: Genes, origin: Genes) -> None:
    """:func:`copy_genes` for Python."""
    for target, values in zip(to.choice, origin.choice, strict=True):
        target[:] = values
    to.halo[:] = origin.halo


@inlined
def first_settled(problem: Problem, one: Genes, other: Genes) -> int:
    """The first position from which on two plans are the same; 0 where they are all the same.

    What ranks own and compute counts, and where boundary rows go first.
    """
    n = problem.ranks
    for p in range(problem.layers - 1, -1, -1):
        layer = one.choice.order[p]
        differs = layer ^ other.choice.order[p]
        for k in range(layer * (n + 1), layer * (n + 1) + n):
            differs |= one.choice.cut[k] ^ other.choice.cut[k]
        for u in range(layer * n, layer * n + n):
            differs |= one.choice.start[u] ^ other.choice.start[u]
            differs |= one.choice.stop[u] ^ other.choice.stop[u]
            differs |= one.choice.first[u] ^ other.choice.first[u]
        if differs != 0:
            return p + 1
    return 0


@inlined
def spread(problem: Problem, genes: Genes) -> None:
    """Fill in the computed spans."""
    n = problem.ranks
    choice = genes.choice
    for layer in range(problem.layers - 1, -1, -1):
        for i in range(n):
            u = layer * n + i
            a = choice.cut[layer * (n + 1) + i]
            b = choice.cut[layer * (n + 1) + i + 1]
            marks = genes.halo[u]
            if marks == 0 or problem.summand[layer] or problem.pinned[layer]:
                choice.start[u] = a if a < b else 0
                choice.stop[u] = b if a < b else 0
                continue
            low, high = 0, 0
            for k in range(problem.out_at[layer], problem.out_at[layer + 1]):
                w = problem.reader[k] * n + i
                if choice.start[w] < choice.stop[w]:
                    need_at = problem.need_at[problem.reader_edge[k]]
                    c = problem.low[need_at + choice.start[w]]
                    d = problem.high[need_at + choice.stop[w] - 1]
                    if c < d:
                        low = c if low == high else min(low, c)
                        high = max(high, d)
            if low < high and problem.undivided[layer]:
                a, b = 0, problem.rows[layer]
            elif low < high and a < b:
                a = min(a, low) if marks & ABOVE else a
                b = max(b, high) if marks & BELOW else b
            elif low < high and marks == ABOVE + BELOW:
                a, b = low, high
            choice.start[u] = a if a < b else 0
            choice.stop[u] = b if a < b else 0


def genes_of(problem: Problem, choice: Choice) -> Genes:
    """The genes nearest to a plan: computed spans may differ where they are not needed ones."""
    n = problem.ranks
    halo = [0] * (problem.layers * n)
    for u in range(problem.layers * n):
        layer, rank = divmod(u, n)
        a, b = (choice.cut[layer * (n + 1) + rank + k] for k in (0, 1))
        start, stop = choice.start[u], choice.stop[u]
        if start < stop:
            halo[u] = ABOVE * (start < a or a == b) + BELOW * (b < stop or a == b)
    return Genes(choice, ints(halo))


def plan_of(graph: Graph, genes: Genes, ranks: int) -> Plan:
    """The plan that ``genes``, whose spans are filled in, stand for."""
    choice = genes.choice
    layers = {}
    for number, layer in enumerate(graph.layers):
        cut = choice.cut[number * (ranks + 1) : (number + 1) * (ranks + 1)]
        owned = from_breakpoints([int(x) for x in cut])
        computed = tuple(
            Span.of(int(choice.start[u]), int(choice.stop[u]))
            for u in range(number * ranks, (number + 1) * ranks)
        )
        layers[layer.name] = LayerPlan(owned, computed)
    first = frozenset(
        (layer.name, rank)
        for number, layer in enumerate(graph.layers)
        for rank in range(ranks)
        if choice.first[number * ranks + rank]
        and layer.sends_early
        and layers[layer.name].computed[rank]
    )
    order = tuple(graph.layers[int(number)].name for number in choice.order)
    return Plan("joint", ranks, layers, order, boundary_first=first)
