"""A plan: who owns and who computes which rows of every layer, and in which order.

Ownership and computation are kept apart. *Owned* spans tile a layer's rows exactly: the
owner of a row is the one who sends it to others and whose summand counts. A rank may
*compute* more than it owns: halo rows recomputed rather than received, or a whole layer
replicated because everybody needs its small result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.division import Division
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.spans import EMPTY, Span


@dataclass(frozen=True)
class LayerPlan:
    """Spans of one layer, one per rank.

    ``owned`` must tile ``[0, rows)`` in rank order (empty spans anywhere); ``computed[i]``
    must contain ``owned[i]``. A layer that is not divisible has one owner, and a rank
    computes all of it or nothing. A layer with summands is computed where it is owned.
    """

    owned: tuple[Span, ...]
    computed: tuple[Span, ...]

    @staticmethod
    def split(spans: tuple[Span, ...]) -> LayerPlan:
        """Every rank computes what it owns."""
        return LayerPlan(spans, spans)

    @staticmethod
    def whole(
        rows: int, ranks: int, owner: int, replicas: frozenset[int] = frozenset()
    ) -> LayerPlan:
        """All rows on ``owner``, computed on ``replicas`` as well."""
        everything = Span(0, rows)
        return LayerPlan(
            tuple(everything if i == owner else EMPTY for i in range(ranks)),
            tuple(everything if i == owner or i in replicas else EMPTY for i in range(ranks)),
        )


@dataclass(frozen=True)
class Plan:
    """One partition of a graph over ``ranks`` ranks.

    ``order`` is the priority in which every rank runs its units (a topological order of
    all layers). ``predicted_s`` is the makespan the planner expects, None where nobody
    predicted it. ``boundary_first`` marks units (layer, rank) that compute the rows which
    others need before the rest (:mod:`edgeflow_mpi.partition.pieces`). ``division`` says which
    layers are not divided by rows: the graph is then that of
    :func:`edgeflow_mpi.graph.division.with_division`. ``engines`` names for (layer, rank) who
    computes it there; what is not in it the default engine computes.
    """

    partitioner: str
    ranks: int
    layers: Mapping[str, LayerPlan]
    order: tuple[str, ...]
    predicted_s: float | None = None
    boundary_first: frozenset[tuple[str, int]] = frozenset()
    division: Division = ()
    engines: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @property
    def active(self) -> tuple[int, ...]:
        """Ranks that compute something."""
        return tuple(
            i for i in range(self.ranks) if any(lp.computed[i] for lp in self.layers.values())
        )


def computing_ranks(graph: Graph, plan: Plan) -> tuple[int, ...]:
    """Ranks that compute rows of some layer; holding the input or the output is no work."""
    work = [plan.layers[layer.name] for layer in graph.layers if layer.kind == "compute"]
    return tuple(i for i in range(plan.ranks) if any(spans.computed[i] for spans in work))


def check_plan(graph: Graph, plan: Plan) -> None:
    """Raise PlanError at the first rule that ``plan`` breaks for ``graph``."""
    names = [layer.name for layer in graph.layers]
    if sorted(plan.order) != sorted(names) or set(plan.layers) != set(names):
        raise PlanError(f"the plan does not list exactly the layers of {graph.name}")
    position = {name: i for i, name in enumerate(plan.order)}
    for layer in graph.layers:
        where = f"layer {layer.name} of the plan"
        for producer in layer.inputs:
            if position[producer] > position[layer.name]:
                raise PlanError(f"{where} comes before its input {producer}")
        lp = plan.layers[layer.name]
        if len(lp.owned) != plan.ranks or len(lp.computed) != plan.ranks:
            raise PlanError(f"{where} does not have one span for each of {plan.ranks} ranks")
        at = 0
        for owned in lp.owned:
            if owned and owned.start != at:
                raise PlanError(f"{where}: rows {at} to {owned.start} have no or two owners")
            at = owned.stop if owned else at
        if at != layer.rows:
            raise PlanError(f"{where} covers {at} of {layer.rows} rows")
        for rank, (owned, computed) in enumerate(zip(lp.owned, lp.computed, strict=True)):
            if owned not in computed or computed.stop > layer.rows:
                raise PlanError(f"{where}: rank {rank} owns {owned} but computes {computed}")
            if computed and computed.rows != layer.rows and not layer.divisible:
                raise PlanError(f"{where} cannot be divided, but rank {rank} computes {computed}")
            if layer.combine and owned != computed:
                raise PlanError(f"{where} has summands, which must not be computed twice")
            if layer.pinned and computed and rank != 0:
                raise PlanError(f"{where} must be on rank 0, not on rank {rank}")
