"""Makespans of plans, many of them, for one graph on one profile."""

from __future__ import annotations

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.simulator.problem import compile_problem
from edgeflow_mpi.partition.simulator.run import NEVER, NO_ROOM, simulate
from edgeflow_mpi.partition.simulator.state import Choice, new_choice, new_scratch


class Simulator:
    """Evaluates plans by the model of :func:`edgeflow_mpi.partition.cost.predict`.

    Parameters
    ----------
    graph, needs, profile : as for ``predict``; the profile must cover all of the graph, and
        the links between all of its devices.
    measured : as for ``predict``.

    Attributes
    ----------
    problem : the arrays of graph and profile.
    scratch : the room that an evaluation works in. It grows with the plans that are seen.
    """

    def __init__(
        self, graph: Graph, needs: Needs, profile: Profile, *, measured: bool = False
    ) -> None:
        self.graph = graph
        self.problem = compile_problem(graph, needs, profile, measured=measured)
        self._number = {layer.name: i for i, layer in enumerate(graph.layers)}
        self.scratch = new_scratch(self.problem, 8 * self.problem.layers * self.problem.ranks)

    def makespan_s(self, plan: Plan) -> float:
        """The makespan of a plan that satisfies ``check_plan``; it is that of ``predict``."""
        return self.simulate(self.choice(plan))

    def simulate(self, choice: Choice, limit_s: float = NEVER) -> float:
        """The makespan of ``choice``; NEVER where it is seen to be more than ``limit_s``."""
        everything = self.problem.layers
        while True:
            bar_s = self.scratch.began_s
            found_s = simulate(self.problem, choice, self.scratch, limit_s, bar_s, everything)
            if found_s != NO_ROOM:
                return found_s
            self.scratch = new_scratch(self.problem, 4 * len(self.scratch.producer))

    def choice(self, plan: Plan) -> Choice:
        """The arrays of ``plan``."""
        n = self.problem.ranks
        choice = new_choice(self.problem)
        for position, name in enumerate(plan.order):
            choice.order[position] = self._number[name]
            choice.position[self._number[name]] = position
        for layer, number in self._number.items():
            lp = plan.layers[layer]
            at = 0
            for rank, (owned, computed) in enumerate(zip(lp.owned, lp.computed, strict=True)):
                at = max(at, owned.stop)
                choice.cut[number * (n + 1) + rank + 1] = at
                choice.start[number * n + rank] = computed.start
                choice.stop[number * n + rank] = computed.stop
        for layer, rank in plan.boundary_first:
            choice.first[self._number[layer] * n + rank] = 1
        return choice
