"""A search on one set of devices: genes in, better genes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.cluster.subset import subset
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.joint.anneal import ANNEAL, BEGIN, new_walk, step
from edgeflow_mpi.partition.joint.genes import ABOVE, BELOW, genes_of, plan_of, set_genes
from edgeflow_mpi.partition.joint.moves import new_moves
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.spans import EMPTY

_CHUNK = 32
"""Moves between two looks at the budget."""


@dataclass
class Budget:
    """How much searching there may be: seconds, simulations, or whichever ends first.

    With simulations alone a search is the same every time.
    """

    seconds: float | None = None
    simulations: int | None = None
    used: int = 0
    started_s: float = 0.0

    def start(self) -> None:
        self.used = 0
        self.started_s = time.monotonic()

    @property
    def spent(self) -> float:
        """The part that is gone, from 0 to 1 and beyond."""
        parts = [0.0]
        if self.seconds is not None:
            parts.append((time.monotonic() - self.started_s) / max(self.seconds, 1e-9))
        if self.simulations is not None:
            parts.append(self.used / max(self.simulations, 1))
        return max(parts)


class Search:
    """A walk among the plans that use (some of) the devices ``ranks`` of a profile.

    ``ranks`` ascend and begin with 0. ``value_s`` is the makespan of the best plan so far.
    """

    def __init__(
        self, graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int], seed: int
    ) -> None:
        self.ranks = tuple(ranks)
        self._graph = graph
        self._size = len(profile.devices)
        self._simulator = Simulator(graph, needs, subset(profile, self.ranks))
        self._problem = self._simulator.problem
        self._walk = new_walk(self._problem)
        speeds = []
        for rank in ranks:
            costs = (layer_cost(graph, profile, layer, rank) for layer in graph.layers)
            rows = (layer.rows for layer in graph.layers)
            whole_s = sum(cost.seconds(r) for cost, r in zip(costs, rows, strict=True))
            speeds.append(1.0 / whole_s if whole_s > 0.0 else 1.0)
        self._moves = new_moves(self._problem, speeds, seed)

    @property
    def value_s(self) -> float:
        return self._walk.value_s[1]

    def begin(self, plan: Plan, budget: Budget) -> None:
        """Start from the genes nearest to ``plan`` and improve whole layers' marks."""
        choice = self._simulator.choice(_narrow(plan, self.ranks))
        self._simulator.simulate(choice)  # makes room for its flows
        set_genes(self._walk.current, genes_of(self._problem, choice))
        self._step(budget, BEGIN)
        for marks in (ABOVE + BELOW, 0, ABOVE + BELOW):
            self._step(budget, marks, count=3)

    def anneal(self, budget: Budget, until: float, hot: float, cold: float) -> None:
        """Walk on from the best point until the budget is spent to ``until``.

        The temperature falls from ``hot`` to ``cold``, both in parts of the makespan.
        """
        set_genes(self._walk.current, self._walk.best)
        self._step(budget, BEGIN)
        first = at = budget.spent
        scale_s = self.value_s
        while at < until:
            done = (at - first) / (until - first)
            temperature_s = scale_s * hot * (cold / hot) ** done
            self._step(budget, ANNEAL, temperature_s, _CHUNK)
            at = budget.spent

    def plan(self) -> Plan:
        """The best plan so far, for all devices of the profile."""
        return _widen(
            plan_of(self._graph, self._walk.best, len(self.ranks)), self.ranks, self._size
        )

    def _step(self, budget: Budget, task: int, temperature_s: float = 0.0, count: int = 0) -> None:
        budget.used += step(
            self._problem, self._walk, self._moves, self._simulator.scratch, task,
            temperature_s, count,
        )  # fmt: skip


def _narrow(plan: Plan, ranks: Sequence[int]) -> Plan:
    """A plan that uses no other devices than ``ranks``, for these alone."""

    def pick(lp: LayerPlan) -> LayerPlan:
        return LayerPlan(
            tuple(lp.owned[rank] for rank in ranks), tuple(lp.computed[rank] for rank in ranks)
        )

    place = {rank: k for k, rank in enumerate(ranks)}
    return replace(
        plan,
        ranks=len(ranks),
        layers={name: pick(lp) for name, lp in plan.layers.items()},
        boundary_first=frozenset(
            (name, place[rank]) for name, rank in plan.boundary_first if rank in place
        ),
    )


def _widen(plan: Plan, ranks: Sequence[int], size: int) -> Plan:
    """A plan for the devices ``ranks`` as one for all ``size``, the others idle."""
    place = {rank: k for k, rank in enumerate(ranks)}

    def spread(lp: LayerPlan) -> LayerPlan:
        return LayerPlan(
            tuple(lp.owned[place[r]] if r in place else EMPTY for r in range(size)),
            tuple(lp.computed[place[r]] if r in place else EMPTY for r in range(size)),
        )

    return replace(
        plan,
        ranks=size,
        layers={name: spread(lp) for name, lp in plan.layers.items()},
        boundary_first=frozenset((name, ranks[rank]) for name, rank in plan.boundary_first),
    )
