"""Adaptive fused blocks by dynamic programming, as in AOFL.

AOFL [1]_ divides a network into blocks of fused layers. Inside a block every device computes
its share of the block's last map from the block's input on, overlaps recomputed; between
blocks maps are put together and divided anew. Where blocks begin is found by dynamic
programming over the time that each block takes, communication included, on devices of unlike
speed. The best block may be a single layer, so an exchange after every layer is among the
choices.

With ``d(s, e)`` the time of a block of the layers from position s up to e
(:attr:`edgeflow_mpi.partition.blocks.Block.duration_s`: what it reads of other devices' rows
travels, then every device computes), the least total is

    t(0) = 0,   t(e) = min over s < e of t(s) + d(s, e).

Differences from the publication: blocks end anywhere in the layer order of a DAG, not of a
chain, so several tensors may cross; between blocks neighbours exchange the rows that are
missing rather than send all through one host; undivided layers are placed as under every
partitioner. A block is not prolonged any more once its recomputation alone takes longer than
its layers would one by one.

References
----------
.. [1] L. Zhou, M. H. Samavatian, A. Bacha, S. Majumdar and R. Teodorescu, "Adaptive parallel
   execution of deep neural networks on heterogeneous edge devices", ACM/IEEE Symposium on Edge
   Computing (SEC) 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.blocks import Block, Shares, plan_blocks
from edgeflow_mpi.partition.plan import Plan


def aofl(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """Fused blocks whose bounds minimise the sum of their times; see the module."""
    shares = Shares(graph, needs, profile, ranks)
    return plan_blocks("aofl", shares, _block_starts(shares), len(shares.layers))


def _block_starts(shares: Shares) -> list[int]:
    """Positions at which the blocks of the least total begin."""
    count = len(shares.layers)
    alone_s = [0.0] * count
    total_s, came_from = [0.0], [0]
    for stop in range(1, count + 1):
        block = Block(shares)
        best_s, best = float("inf"), stop - 1
        one_by_one_s = 0.0
        for start in range(stop - 1, -1, -1):
            block.prepend(start)
            if start == stop - 1:
                alone_s[start] = block.duration_s
            one_by_one_s += alone_s[start]
            through_s = total_s[start] + block.duration_s
            if through_s < best_s:
                best_s, best = through_s, start
            if float(block.compute_s.max()) > one_by_one_s:
                break
        total_s.append(best_s)
        came_from.append(best)
    starts, stop = [], count
    while stop > 0:
        stop = came_from[stop]
        starts.append(stop)
    return starts[::-1]
