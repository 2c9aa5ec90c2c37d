"""Weights through the memory of the one machine on which all ranks run.

For ranks that stand for devices of an emulated cluster: what travels over links is the devices'
business, and weights that a link of 25 Mbit/s carries for minutes are no part of a request.
The pages of the file are the same memory for all ranks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.graph.channels import Part
from edgeflow_mpi.graph.division import with_division
from edgeflow_mpi.graph.local import part_spec, piece_of
from edgeflow_mpi.graph.types import Graph, TensorSpec
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
    wanted = needed_weights(with_division(graph, tables.division), tables, rank)
    if rank == 0:
        mine = {name: _piece(weights, name, part) for name, part in wanted.items()}
    else:
        mine = {name: weights[name] for name in wanted if name in weights}
    if not size_bytes:
        return mine
    path = broadcast(comm, lambda: _written(places, size_bytes, weights), "sharing the weights")
    try:
        with agreed(comm, "sharing the weights"):
            if rank:
                memory = torch.from_file(
                    str(path), shared=False, size=size_bytes, dtype=torch.uint8
                )
                for name in wanted:
                    if name not in mine:
                        place = places[name]
                        mine[name] = _tensor(memory, place.start, place.spec)
    finally:
        if rank == 0:
            path.unlink(missing_ok=True)
    return mine


@dataclass(frozen=True)
class _Place:
    """A weight, or part of one, in the file."""

    start: int
    spec: TensorSpec
    part: Part | None


def _places(
    graph: Graph, tables: UnitTables, had: UnitTables | None
) -> tuple[dict[str, _Place], int]:
    """Where in the file weights lie that some rank lacks, and how long it is."""
    own = with_division(graph, tables.division)
    before = graph if had is None else with_division(graph, had.division)
    places: dict[str, _Place] = {}
    end = 0
    for rank in range(1, tables.size):
        old = {} if had is None else needed_weights(before, had, rank)
        for name, part in needed_weights(own, tables, rank).items():
            if name in old or name in places:
                continue
            places[name] = place = _Place(end, part_spec(graph, name, part), part)
            end += -(-place.spec.size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return places, end


def _written(places: Mapping[str, _Place], size_bytes: int, weights: Mapping[str, Tensor]) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="edgeflow-weights-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for weight, place in places.items():
                file.seek(place.start)
                file.write(memory_of(_piece(weights, weight, place.part).contiguous()).data)
            file.truncate(size_bytes)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _piece(weights: Mapping[str, Tensor], name: str, part: Part | None) -> Tensor:
    return weights[name] if part is None else piece_of(part, weights[part.name])


def _tensor(memory: Tensor, start: int, spec: TensorSpec) -> Tensor:
    part = memory[start : start + spec.size_bytes].view(getattr(torch, spec.dtype))
    return part[: prod(spec.shape)].reshape(spec.shape)
