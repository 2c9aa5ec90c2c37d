"""The layer problem linearised once: an ablation of :mod:`edgeflow_mpi.partition.lp`.

This is the most direct reading of "transform the integer program into a linear program": one
linear program for each layer, made around one point, solved once and rounded. The point is
shares proportional to speed, where every device has rows. The piece of each overlap that is
least there is used everywhere, no trust region keeps the optimum near, and nobody checks the
true objective: each breakpoint is rounded to the nearest row (halves up).

What to do with messages that the point does without is the one choice left. Constraints that
keep them out make the program a restriction of the true problem (where needs are linear), so
that its optimum, before rounding, is no worse than the point; that is what the partitioner
does. Leaving them out of the program without a word relaxes it: its optimum then needs messages
that it knows nothing of. Both are measured beside ``lp`` and ``exact`` by
``bench/lp_vs_exact.py``. After rounding nothing is guaranteed.

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


def solve_once(problem: LayerProblem, start: Sequence[int], *, keep_out: bool = True) -> Ints:
    """The rounded optimum of the program around ``start``: k + 1 integers.

    ``keep_out`` says whether messages that ``start`` does without must stay out; otherwise
    the program ignores them.

    Raises
    ------
    PlanError
        The solver failed in a way that says nothing about the problem.
    """
    x = np.array(start, dtype=np.float64)
    step = linear_step(problem, x, float(problem.rows), keep_out=keep_out)
    if step is not None:
        x = step.breakpoints
    return np.floor(x + 0.5).astype(np.int64)
