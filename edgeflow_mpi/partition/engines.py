"""Which engine computes what: read from the profile, or wanted by the user."""

from __future__ import annotations

from dataclasses import replace

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.kernels.names import AUTO, DEFAULT, NARROW
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.plan import Plan


def with_engines(
    graph: Graph, profile: Profile, plan: Plan, wanted: str = AUTO, precision: str = "fp32"
) -> Plan:
    """``plan`` with an engine named for every layer on every rank that computes rows of it.

    Parameters
    ----------
    graph : the layer DAG of the plan.
    profile : of the plan's ranks; its costs know which engine was the fastest for how many rows.
    plan : who computes what.
    wanted : an engine for everything, or ``auto`` for the fastest.
    precision : a profile may name engines that round more than this allows; they are left out.

    Returns
    -------
    Plan
        Where no engines were measured, as in a cluster file, none is named: the default one
        computes then.
    """
    engines: dict[tuple[str, int], str] = {}
    for layer in graph.layers:
        if layer.kind != "compute":
            continue
        for rank, rows in enumerate(plan.layers[layer.name].computed):
            if not rows:
                continue
            engine = wanted
            if wanted == AUTO:
                engine = layer_cost(graph, profile, layer, rank).engine(rows.rows)
            if engine != DEFAULT and NARROW.get(engine, precision) == precision:
                engines[layer.name, rank] = engine
    return replace(plan, engines=engines)
