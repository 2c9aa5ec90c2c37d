"""Weights from rank 0 to the ranks that need them, once, as raw tensor memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from edgeflow_mpi.graph.channels import Part
from edgeflow_mpi.graph.division import with_division
from edgeflow_mpi.graph.local import part_spec, piece_of, weight_keys
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


def needed_weights(graph: Graph, tables: UnitTables, rank: int) -> dict[str, Part | None]:
    """What a rank's units use of the weights, in order of use.

    Whole weights by their names (with None), parts of weights by their keys.
    """
    found: dict[str, Part | None] = {}
    for unit in tables.ranks[rank]:
        found |= weight_keys(graph, graph.by_name[unit.layer], unit.rows)
    return found


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
    graph : the model's own, the same on every rank.
    tables : the same on every rank; their division is that of the graph that they are for.
    weights : all weights on rank 0; elsewhere those that ``had`` brought.
    had : tables whose weights the ranks have already; nothing travels twice.

    Returns
    -------
    dict
        The weights that this rank's units name, and under their keys those of which they need
        parts. One that all ranks lack is broadcast, any other one is sent to each rank that
        lacks it.
    """
    rank = comm.Get_rank()
    own = with_division(graph, tables.division)
    old_graph = graph if had is None else with_division(graph, had.division)
    needers: dict[str, list[int]] = {}
    parts: dict[str, Part | None] = {}
    for other in range(tables.size):
        old = needed_weights(old_graph, had, other) if had is not None else {}
        for name, part in needed_weights(own, tables, other).items():
            if other == 0 or name not in old:
                needers.setdefault(name, []).append(other)
                parts[name] = part
    names = needed_weights(own, tables, rank)
    mine = {name: weights[name] for name in names if name in weights}
    specs = {name: part_spec(graph, name, part) for name, part in parts.items()}
    total = sum(spec.size_bytes for spec in specs.values())
    done = 0
    for name, ranks in needers.items():
        spec, part = specs[name], parts[name]
        if rank == 0:
            tensor = (
                weights[name].contiguous() if part is None else piece_of(part, weights[part.name])
            )
        else:
            tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        if rank in ranks:
            mine[name] = tensor
        if len(ranks) == tables.size:
            comm.Bcast(memory_of(tensor), root=0)
        elif rank == 0:
            for other in ranks:
                if other != 0:
                    comm.Send(memory_of(tensor), dest=other, tag=_WEIGHT_TAG)
        elif rank in ranks:
            comm.Recv(memory_of(tensor), source=0, tag=_WEIGHT_TAG)
        done += spec.size_bytes
        progress.update(f"weights sent: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
    return mine


def memory_of(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A contiguous tensor's memory, as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
