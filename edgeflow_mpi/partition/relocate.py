"""A plan for some devices as one for more, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.spans import EMPTY


def spread_out(plan: Plan, ranks: Sequence[int], size: int) -> Plan:
    """A plan for the devices ``ranks`` (ascending) as one for all ``size``, the others idle."""
    if tuple(ranks) == tuple(range(size)):
        return plan
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


def narrowed(plan: Plan, ranks: Sequence[int]) -> Plan:
    """A plan that gives rows to none but ``ranks`` (ascending), for these alone."""
    if tuple(ranks) == tuple(range(plan.ranks)):
        return plan
    place = {rank: k for k, rank in enumerate(ranks)}

    def pick(lp: LayerPlan) -> LayerPlan:
        return LayerPlan(
            tuple(lp.owned[rank] for rank in ranks), tuple(lp.computed[rank] for rank in ranks)
        )

    return replace(
        plan,
        ranks=len(ranks),
        layers={name: pick(lp) for name, lp in plan.layers.items()},
        boundary_first=frozenset(
            (name, place[rank]) for name, rank in plan.boundary_first if rank in place
        ),
    )
