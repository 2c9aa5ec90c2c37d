r"""A lower bound on the makespan of every plan, so that a plan has a certified gap.

**What it bounds.** Any plan that satisfies ``check_plan``, on any subset of the given ranks:
any breakpoints, recomputation, replication, placement, order and boundary-first bits, and any
division by channels or by inputs of layers that planners may divide so (those of
:mod:`edgeflow_mpi.graph.tail`), under the cost model of :mod:`edgeflow_mpi.partition.cost`,
on switched and shared networks. Of that model only this is used:

1. a device computes one piece at a time, and in total at least ``c + w * m`` seconds for any m
   rows of a layer, however many pieces they are in;
2. a piece starts when every row it reads is on its rank: computed there, in pieces that have
   ended, or arrived from one that computed it;
3. of messages that leave after time t with b seconds of transmission in total, to one rank,
   from one rank, or on one shared medium, the last arrives no earlier than ``t + latency + b``
   (with the least latency and, where we do not know the link, the greatest bandwidth);
4. inputs are on rank 0 from the start, and an answer is there at the makespan.

Processor time per message, memory limits and whatever else makes plans slower or rules some
out leaves a bound a bound.

**Useful work.** Call a piece useful if some answer waits for it, directly or through others.
Going back from the answers, whose rows are all useful, call a row useful if a useful row of a
reader needs it. By (2) each useful row is computed in a useful piece, by induction: a useful
piece that reads the row waits for a piece that computes it. All useful pieces end by the
makespan. Everything below counts useful rows only.

**Divisions.** In a plan that divides a layer otherwise, a share of its channels or inputs takes
at least that share of its time, needs at least that share of what it reads, and is that share
of what it sends. So ``work`` and ``exchange``, which look at shares only, hold for every
division, but for flattenings, which may become needless and count as free, and for the least
message. ``order`` and ``cut`` take for each such layer the earlier of its rows and of what other
divisions allow (:mod:`.loose`).

**Four bounds**, of which the largest is the bound:

``work``
    Total work over total speed, with the ways to and from rank 0 (:mod:`.work`).
``exchange``
    What must pass between rank 0 and the others to let them help (:mod:`.exchange`).
``order``
    The layers one after the other: when a single device can have computed, or can have at its
    disposal, any span of rows (:mod:`.arrival`). It follows the critical path, with halos
    either recomputed or received, and takes into account at every layer that all rows which a
    span depends on must have been computed by somebody.
``cut``
    For a layer l let F be a bound on when all of its useful rows exist (``exchange`` or total
    work of what l depends on). Some row r is the last of them. What depends on r, and some
    answer does, is computed after F. Let G(r) bound how long that takes, even if every device
    has a copy of r at F and whatever does not depend on r is there already (``order`` again,
    beginning at r). Then F plus the least G(r) is a bound. It is made for the few layers where
    F and the plain path behind l add up to the most.

Nothing here is optimal: devices are told apart in ``work`` and ``exchange`` only, and that a
rank computes one contiguous span of a layer in at most three pieces is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.bound.arrival import Arrivals
from edgeflow_mpi.partition.bound.case import Case
from edgeflow_mpi.partition.bound.cones import Cone, cones, least_rest_s
from edgeflow_mpi.partition.bound.exchange import Exchange
from edgeflow_mpi.partition.bound.work import Work, work_bound
from edgeflow_mpi.partition.timeline import Floats, Ints

CUTS, CUT_ROWS = 3, 64
"""At how many layers ``cut`` is made, and how many rows they have at most."""
PROBES = 16
"""For how many, at least, F is more than total work."""
ROUNDING = 1e-9
"""Relative allowance for the rounding of sums of times, here and in predictions."""


@dataclass(frozen=True)
class Bound:
    """No plan has a smaller makespan than ``makespan_s``; ``parts`` are the bounds by name."""

    makespan_s: float
    parts: Mapping[str, float]

    def gap(self, makespan_s: float) -> float:
        """By what share a plan of this makespan may be from the best there is, at most."""
        if self.makespan_s <= 0.0:
            return 0.0 if makespan_s <= 0.0 else float("inf")
        return makespan_s / self.makespan_s - 1.0


def lower_bound(
    graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int] | None = None
) -> Bound:
    """A makespan that no plan on ``ranks`` can beat.

    Parameters
    ----------
    graph : the layer DAG.
    needs : its row algebra.
    profile : devices, costs and links. Where ranks of one host slow each other down, the bound
        is for the least of them at work, and so holds however many are.
    ranks : who may compute, rank 0 always included; all ranks by default.

    Returns
    -------
    Bound
        A function of the arguments alone.

    Raises
    ------
    ProfileError
        The profile does not cover a layer or a device.
    """
    used = range(len(profile.devices)) if ranks is None else sorted({0, *ranks})
    case = Case(graph, needs, profile, used)
    work = work_bound(case)
    parts = {"work": work.makespan_s}
    reach = cones(case)
    row_value_s = work.value_s / np.maximum(case.count, 1)
    parts["order"] = Arrivals(case, reach, row_value_s).answer_s
    exchange = Exchange(case, work.weights) if case.ranks > 1 else None
    if exchange is not None:
        parts["exchange"] = exchange.makespan_s()
    parts["cut"] = _cut_s(case, work, exchange, reach, row_value_s)
    trusted = {name: max(seconds, 0.0) * (1.0 - ROUNDING) for name, seconds in parts.items()}
    return Bound(max(trusted.values()), trusted)


def _cut_s(
    case: Case,
    work: Work,
    exchange: Exchange | None,
    reach: Sequence[Cone],
    row_value_s: Floats,
) -> float:
    """The bound ``cut``; ``row_value_s`` is the worth of one row of each layer."""
    rest_s = [float(rows.min(initial=np.inf)) for rows in least_rest_s(case)]
    needed = {
        layer: _cone_rows(case, reach[layer])
        for layer in case.work
        if layer not in case.loose and case.useful[layer].all() and case.count[layer] <= CUT_ROWS
    }
    exists_s = {layer: float((row_value_s * rows).sum()) for layer, rows in needed.items()}

    def promise_s(layer: int) -> float:
        return exists_s[layer] + rest_s[layer]

    if exchange is not None:
        # A linear program for every layer takes long: some all over the model, and the best.
        some = set(list(needed)[:: max(1, len(needed) // PROBES)])
        some.update(sorted(needed, key=promise_s)[-CUTS:])
        for layer in sorted(some):
            exists_s[layer] = max(exists_s[layer], exchange.least_s(needed[layer]))
    best_s = 0.0
    for layer in sorted(needed, key=promise_s)[-CUTS:]:
        after_s = Arrivals(case, reach, row_value_s, last=layer).answer_s
        best_s = max(best_s, exists_s[layer] + after_s)
    return best_s


def _cone_rows(case: Case, cone: Cone) -> Ints:
    """How many useful rows of each layer all rows of one depend on."""
    found = np.zeros(len(case.layers), dtype=np.int64)
    for layer, (low, high) in cone.items():
        found[layer] = np.count_nonzero(case.useful[layer][low[0] : high[-1]])
    return found
