"""One fused block of early layers, the rest on the gateway, as in DeepThings.

DeepThings [1]_ cuts the map behind its first layers into a grid of equal tiles, lets every
device compute whole tiles from the input on, recomputing what overlaps, and runs the remaining
layers on the gateway. Here tiles are bands of rows (a grid of n by 1), one for each device,
and the fused layers of a DAG are all layers up to a place where a single tensor is alive, as long
as all of them can be divided and recomputed. The
published system balances unlike devices by letting idle ones steal tiles; bands in proportion
to speed are what that converges to. It fixes the number of fused layers by hand; here every
possible place is tried, and the one that the block model (scatter, compute, gather, then the
gateway alone) holds best is taken. Reuse of overlapping data between tiles is not modelled.

References
----------
.. [1] Z. Zhao, K. M. Barijough and A. Gerstlauer, "DeepThings: Distributed adaptive deep
   learning inference on resource-constrained IoT edge clusters", IEEE Transactions on
   Computer-Aided Design of Integrated Circuits and Systems 37(11), 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.blocks import Block, Shares, plan_blocks, recomputable
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.plan import Plan


def fused(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """The best single fused block of first layers; all behind it on rank 0. See the module."""
    shares = Shares(graph, needs, profile, ranks)
    stop = min(_places(shares), key=lambda stop: (_duration_s(shares, stop), stop))
    return plan_blocks("fused", shares, [0], stop)


def _places(shares: Shares) -> list[int]:
    """Where the block may stop: 0, and positions before which exactly one tensor is alive."""
    position = {layer.name: i for i, layer in enumerate(shares.layers)}
    count = len(shares.layers)
    # How long each tensor lives, as differences over positions.
    change = np.zeros(count + 2, dtype=np.int64)
    for layer in (*shares.graph.inputs, *shares.layers):
        readers = [position.get(name, count) for name in shares.graph.consumers[layer.name]]
        change[position.get(layer.name, -1) + 1] += 1
        change[max(readers, default=count) + 1] -= 1
    alive = np.cumsum(change)
    most = next((i for i, layer in enumerate(shares.layers) if not recomputable(layer)), count)
    return [0, *(i for i in range(1, most + 1) if alive[i] == 1)]


def _duration_s(shares: Shares, stop: int) -> float:
    """The block model's time with layers before ``stop`` fused."""
    block = Block(shares)
    for position in range(stop - 1, -1, -1):
        block.prepend(position)
    behind = {layer.name for layer in shares.layers[stop:]}
    behind.update(layer.name for layer in shares.graph.outputs)
    count = len(shares.profile.devices)
    gather_s = 0.0
    for layer in shares.layers[:stop]:
        if layer.splits and behind & set(shares.graph.consumers[layer.name]):
            start, end = np.zeros((2, count), dtype=np.int64)
            end[0] = layer.rows
            sending, receiving, latency_s = shares.exchange_s(layer, start, end)
            gather_s += max(float(sending.max()), float(receiving.max())) + latency_s
    rest_s = sum(
        layer_cost(shares.graph, shares.profile, layer, 0).seconds(layer.rows)
        for layer in shares.layers[stop:]
    )
    return block.duration_s + gather_s + rest_s
