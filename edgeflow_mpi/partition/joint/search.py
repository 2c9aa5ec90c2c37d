"""A search on one set of devices: genes in, better genes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

from edgeflow_mpi.cluster.profile import Device, Profile
from edgeflow_mpi.cluster.subset import subset
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.joint.anneal import ANNEAL, BEGIN, new_walk, step
from edgeflow_mpi.partition.joint.genes import ABOVE, BELOW, genes_of, plan_of, set_genes
from edgeflow_mpi.partition.joint.moves import new_moves
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.relocate import narrowed, spread_out
from edgeflow_mpi.partition.simulator.jit import COMPILED, is_kept
from edgeflow_mpi.partition.simulator.problem import compile_problem
from edgeflow_mpi.partition.simulator.run import NEVER, simulate
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.partition.simulator.state import new_scratch
from edgeflow_mpi.progress import NoProgress, Progress

_SILENT = NoProgress()
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

    @classmethod
    def of(cls, seconds: float, simulations: int | None) -> Budget:
        """So many seconds, unless a number of simulations is given."""
        return cls(seconds) if simulations is None else cls(None, simulations)

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

    ``ranks`` ascend and begin with 0. ``value_s`` is the makespan of the best plan so far, with
    ``measured`` costs or those of lines.
    """

    def __init__(
        self, graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int], seed: int,
        *, measured: bool = False,
    ) -> None:  # fmt: skip
        self.ranks = tuple(ranks)
        self._graph = graph
        self._size = len(profile.devices)
        part = subset(profile, self.ranks)
        self._simulator = Simulator(graph, needs, part, measured=measured)
        self._problem = self._simulator.problem
        self._walk = new_walk(self._problem)
        speeds = []
        for rank in ranks:
            costs = (layer_cost(graph, profile, layer, rank) for layer in graph.layers)
            rows = (layer.rows for layer in graph.layers)
            whole_s = sum(cost.seconds(r) for cost, r in zip(costs, rows, strict=True))
            speeds.append(1.0 / whole_s if whole_s > 0.0 else 1.0)
        self._moves = new_moves(self._problem, speeds, seed)

    _compiled: ClassVar[bool] = False

    @classmethod
    def compile(cls, progress: Progress = _SILENT) -> None:
        """Compile what the search runs, unless that was done before, by a search on nothing."""
        if cls._compiled:
            return
        kept = not COMPILED or is_kept(step)
        if not kept:
            # A minute of silence looks like a hang.
            progress.say("  compiling the search, once on this machine: half a minute or more")
        said = "the search loaded" if kept else "the search compiled, which is kept"
        with progress.step(said) if COMPILED else nullcontext():
            problem = compile_problem(*_nothing())
            work = new_scratch(problem, 1)
            walk, moves = new_walk(problem), new_moves(problem, [1.0], 0)
            simulate(problem, walk.current.choice, work, NEVER, walk.latest_s, problem.layers)
            step(problem, walk, moves, work, ANNEAL, 0.0, 0)
        cls._compiled = True

    @property
    def value_s(self) -> float:
        return self._walk.value_s[1]

    def begin(self, plan: Plan, budget: Budget) -> None:
        """Start from the genes nearest to ``plan`` and improve whole layers' marks."""
        choice = self._simulator.choice(narrowed(plan, self.ranks))
        self._simulator.simulate(choice)  # makes room for its flows
        set_genes(self._walk.current, genes_of(self._problem, choice))
        self._step(budget, BEGIN)
        for marks in (ABOVE + BELOW, 0, ABOVE + BELOW):
            self._step(budget, marks, count=3)

    def anneal(
        self, budget: Budget, until: float, hot: float, cold: float, tell: Callable[[], None]
    ) -> None:
        """Walk on from the best point until the budget is spent to ``until``.

        The temperature falls from ``hot`` to ``cold``, both in parts of the makespan. ``tell``
        is called now and then.
        """
        set_genes(self._walk.current, self._walk.best)
        self._step(budget, BEGIN)
        first = at = budget.spent
        scale_s = self.value_s
        while at < until:
            done = (at - first) / (until - first)
            temperature_s = scale_s * hot * (cold / hot) ** done
            self._step(budget, ANNEAL, temperature_s, _CHUNK)
            tell()
            at = budget.spent

    def plan(self) -> Plan:
        """The best plan so far, for all devices of the profile."""
        best = plan_of(self._graph, self._walk.best, len(self.ranks))
        return spread_out(best, self.ranks, self._size)

    def _step(self, budget: Budget, task: int, temperature_s: float = 0.0, count: int = 0) -> None:
        tried = step(
            self._problem, self._walk, self._moves, self._simulator.scratch, task,
            temperature_s, count,
        )  # fmt: skip
        # So that a budget of simulations ends even where no move leads anywhere.
        budget.used += max(tried, 1)


def _nothing() -> tuple[Graph, Needs, Profile]:
    """The smallest graph on the smallest profile."""
    spec = TensorSpec((1,), "float32", None)
    layers = (
        Layer("input", "input", (), (), spec, 1, divisible=False),
        Layer("output", "output", ("input",), (), spec, 1, divisible=False),
    )
    graph = Graph("nothing", layers, (), ("output",))
    return graph, Needs(graph), Profile("nothing", "", (Device("device", 1, 1),), ({},), {})
