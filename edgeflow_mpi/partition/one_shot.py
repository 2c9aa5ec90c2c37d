"""The layer problem linearised once: an ablation of :mod:`edgeflow_mpi.partition.lp`.

This is the most direct reading of "transform the integer program into a linear program": one
linear program for each layer, made around one point, solved once and rounded. The point is
shares proportional to speed, where every device has rows. Messages that are not needed there
are left out of the program wherever its optimum may lie, pieces of the overlap that are least
there are used everywhere, no trust region keeps the optimum near, and nobody checks the true
objective: each breakpoint is rounded to the nearest row (halves up).

So nothing is guaranteed, not even to do better than the point it starts from; what that costs
is measured beside ``lp`` and ``exact`` by ``bench/lp_vs_exact.py``.

References
----------
.. [1] C. Hu and B. Li, "Distributed Inference with Deep Learning Models across Heterogeneous
   Edge Devices", IEEE INFOCOM 2022, approximates the layer problem by a linear program. How is
   not public; this is not a claim about their program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.baselines import speed_shares
from edgeflow_mpi.partition.linear_program import linear_step
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.progressive import plan_progressively
from edgeflow_mpi.partition.timeline import Ints, LayerProblem, Timeline


def one_shot(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """One linear program for each divided layer, rounded; see the module."""
    return plan_progressively("one-shot", _policy, graph, needs, profile, ranks)


def _policy(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> tuple[int, ...]:
    start = speed_shares(timeline, layer, ranks)
    return tuple(int(x) for x in solve_once(timeline.problem(layer, ranks), start))


def solve_once(problem: LayerProblem, start: Sequence[int]) -> Ints:
    """The rounded optimum of the program around ``start``: k + 1 integers.

    Raises
    ------
    PlanError
        The solver failed in a way that says nothing about the problem.
    """
    x = np.array(start, dtype=np.float64)
    step = linear_step(problem, x, float(problem.rows), keep_out=False)
    if step is not None:
        x = step.breakpoints
    return np.floor(x + 0.5).astype(np.int64)
