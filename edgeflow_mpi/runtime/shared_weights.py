"""Weights through the memory of the one machine on which all ranks run.

For ranks that stand for devices of an emulated cluster: what travels over links is the devices'
business, and weights that a link of 25 Mbit/s carries for minutes are no part of a request.
The pages of the file are the same memory for all ranks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.runtime.distribute import memory_of, needed_weights
from edgeflow_mpi.units.tables import UnitTables

Tensor = torch.Tensor
_ALIGNMENT_BYTES = 64


def share_weights(
    comm: Communicator,
    graph: Graph,
    tables: UnitTables,
    weights: Mapping[str, Tensor],
    *,
    had: UnitTables | None = None,
) -> dict[str, Tensor]:
    """Every rank's share of the weights, as from
    :func:`~edgeflow_mpi.runtime.distribute.distribute_weights`; collective.

    Raises
    ------
    ClusterError
        On all ranks, when there is no room for the file or a rank does not see it.
    """
    rank = comm.Get_rank()
    places, size_bytes = _places(graph, tables, had)
    names = needed_weights(graph, tables, rank)
    mine = {name: weights[name] for name in names if name in weights}
    if not size_bytes:
        return mine
    path = broadcast(comm, lambda: _written(places, size_bytes, weights), "sharing the weights")
    try:
        with agreed(comm, "sharing the weights"):
            if rank:
                memory = torch.from_file(
                    str(path), shared=False, size=size_bytes, dtype=torch.uint8
                )
                for name in names:
                    if name not in mine:
                        mine[name] = _tensor(graph, memory, name, places[name])
    finally:
        if rank == 0:
            path.unlink(missing_ok=True)
    return mine


def _places(graph: Graph, tables: UnitTables, had: UnitTables | None) -> tuple[dict[str, int], int]:
    """Where in the file weights lie that some rank lacks, and how long it is."""
    lacking: dict[str, None] = {}
    for rank in range(1, tables.size):
        old = set() if had is None else set(needed_weights(graph, had, rank))
        lacking |= dict.fromkeys(n for n in needed_weights(graph, tables, rank) if n not in old)
    places, end = {}, 0
    for name in lacking:
        places[name] = end
        end += -(-graph.weight_specs[name].size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return places, end


def _written(places: Mapping[str, int], size_bytes: int, weights: Mapping[str, Tensor]) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="edgeflow-weights-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for weight, start in places.items():
                file.seek(start)
                file.write(memory_of(weights[weight].contiguous()).data)
            file.truncate(size_bytes)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _tensor(graph: Graph, memory: Tensor, name: str, start: int) -> Tensor:
    spec = graph.weight_specs[name]
    part = memory[start : start + spec.size_bytes].view(getattr(torch, spec.dtype))
    return part[: prod(spec.shape)].reshape(spec.shape)
