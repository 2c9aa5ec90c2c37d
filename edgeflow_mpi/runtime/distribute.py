"""Weights from rank 0 to the ranks that need them, once, as raw tensor memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.units.tables import UnitTables

Tensor = torch.Tensor
_WEIGHT_TAG = 1


class BufferComm(Protocol):
    """The communicator calls that are used here (an mpi4py ``Intracomm``)."""

    def Get_rank(self) -> int: ...
    def Send(self, buf: Any, dest: int, tag: int = 0) -> None: ...
    def Recv(self, buf: Any, source: int, tag: int = 0) -> None: ...
    def Bcast(self, buf: Any, root: int = 0) -> None: ...


def needed_weights(graph: Graph, tables: UnitTables, rank: int) -> tuple[str, ...]:
    """Names of the weights that a rank's units use, each once, in order of use."""
    names = (n for unit in tables.ranks[rank] for n in graph.by_name[unit.layer].weights)
    return tuple(dict.fromkeys(names))


def distribute_weights(
    comm: BufferComm,
    graph: Graph,
    tables: UnitTables,
    weights: Mapping[str, Tensor],
    progress: Progress,
    *,
    had: UnitTables | None = None,
) -> dict[str, Tensor]:
    """Every rank's share of the weights; collective.

    Parameters
    ----------
    comm : all its ranks must call this.
    graph, tables : the same on every rank.
    weights : all weights on rank 0; elsewhere those that ``had`` brought.
    had : tables whose weights the ranks have already; nothing travels twice.

    Returns
    -------
    dict
        The weights that this rank's units name. A weight that all ranks lack is broadcast,
        any other one is sent to each rank that lacks it.
    """
    rank = comm.Get_rank()
    needers: dict[str, list[int]] = {}
    for other in range(tables.size):
        old = set(needed_weights(graph, had, other)) if had is not None else set()
        for name in needed_weights(graph, tables, other):
            if other == 0 or name not in old:
                needers.setdefault(name, []).append(other)
    names = needed_weights(graph, tables, rank)
    mine = {name: weights[name] for name in names if name in weights}
    total = sum(graph.weight_specs[name].size_bytes for name in needers)
    done = 0
    for name, ranks in needers.items():
        spec = graph.weight_specs[name]
        if rank == 0:
            tensor = weights[name].contiguous()
        else:
            tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        if rank in ranks:
            mine[name] = tensor
        if len(ranks) == tables.size:
            comm.Bcast(_bytes(tensor), root=0)
        elif rank == 0:
            for other in ranks:
                if other != 0:
                    comm.Send(_bytes(tensor), dest=other, tag=_WEIGHT_TAG)
        elif rank in ranks:
            comm.Recv(_bytes(tensor), source=0, tag=_WEIGHT_TAG)
        done += spec.size_bytes
        progress.update(f"weights sent: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
    return mine


def _bytes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The tensor's memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
