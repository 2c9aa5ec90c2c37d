"""The graph that a partitioner plans, which for one of them is not quite the model's own."""

from __future__ import annotations

from edgeflow_mpi.graph.relays import with_relays
from edgeflow_mpi.graph.types import Graph


def graph_for(partitioner: str, graph: Graph) -> Graph:
    """The graph that the named partitioner plans, and that its plans are run on.

    For all but ``gather`` it is the model's own ``graph``. There it has relays besides; a
    profile of either serves both.
    """
    return with_relays(graph) if partitioner == "gather" else graph
