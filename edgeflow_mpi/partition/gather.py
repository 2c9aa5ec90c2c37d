"""Scatter and gather of every layer through rank 0, as early systems do.

Rank 0 holds every tensor. For a layer with weights it sends each device the input rows of its
share, all of them, whatever the device has computed before, and the devices send their output
rows back; all other layers rank 0 runs by itself. Shares are proportional to the measured
speed of the layer. That is the communication pattern of MoDNN [1]_, whose group owner maps
each layer's input to worker nodes and reduces their outputs, and of MeDNN [2]_, which adapts
the shares to the devices; how they cut and compress is not followed here.

A plan says who computes a row, and whoever owns a row sends it, so the way back to rank 0
has layers of its own: plans are made for graphs from
:func:`edgeflow_mpi.graph.relays.with_relays`.

References
----------
.. [1] J. Mao et al., "MoDNN: Local distributed mobile computing system for deep neural
   network", DATE 2017.
.. [2] J. Mao et al., "MeDNN: A distributed mobile system with enhanced partition and
   deployment for large-scale DNNs", ICCAD 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.relays import scattered, with_relays
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.baselines import speed_shares
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.timeline import Timeline
from edgeflow_mpi.spans import EMPTY, Span


def gather(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """Layers with weights in shares over ``ranks``, everything else on rank 0.

    Raises
    ------
    PlanError
        ``graph`` lacks relays.
    """
    if not any(layer.kind == "relay" for layer in graph.layers) and with_relays(graph) != graph:
        raise PlanError(
            f"scatter and gather needs relays in the graph of {graph.name}: take the graph from "
            "edgeflow_mpi.graph.relays.with_relays"
        )
    timeline = Timeline(graph, needs, profile)
    plans = {}
    for layer in graph.layers:
        plans[layer.name] = LayerPlan.whole(layer.rows, timeline.ranks, 0)
        if scattered(layer):
            x = speed_shares(timeline, layer, ranks)
            spans = [EMPTY] * timeline.ranks
            for rank, start, stop in zip(ranks, x, x[1:], strict=False):
                spans[rank] = Span.of(start, stop)
            plans[layer.name] = LayerPlan.split(tuple(spans))
    return Plan("gather", timeline.ranks, plans, tuple(layer.name for layer in graph.layers))
