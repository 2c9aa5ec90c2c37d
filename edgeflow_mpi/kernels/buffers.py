"""Memory of tensor pieces: the rows of a piece are contiguous per batch item.

Feature maps are channels-last, so that a span of rows of one image is one run of bytes and
travels without packing.
"""

from __future__ import annotations

import math

import torch

from edgeflow_mpi.graph.types import TensorSpec


def memory_format(spec: TensorSpec) -> torch.memory_format:
    """The torch name of the canonical memory order."""
    if spec.memory_order == tuple(range(len(spec.shape))):
        return torch.contiguous_format
    return torch.channels_last if len(spec.shape) == 4 else torch.channels_last_3d


def empty(spec: TensorSpec, rows: int) -> torch.Tensor:
    """An uninitialised piece of ``rows`` rows, in the canonical memory order."""
    order = spec.memory_order
    shape = spec.shape_of(rows)
    inverse = [order.index(dim) for dim in range(len(shape))]
    dtype = getattr(torch, spec.dtype)
    return torch.empty([shape[dim] for dim in order], dtype=dtype).permute(inverse)


def placed(spec: TensorSpec, rows: int, memory: torch.Tensor, offset: int) -> torch.Tensor:
    """A piece like that of :func:`empty`, ``offset`` bytes from the start of ``memory``."""
    order = spec.memory_order
    shape = spec.shape_of(rows)
    inverse = [order.index(dim) for dim in range(len(shape))]
    dtype = getattr(torch, spec.dtype)
    size = math.prod(shape) * dtype.itemsize
    flat = memory[offset : offset + size].view(dtype)
    return flat.view([shape[dim] for dim in order]).permute(inverse)


def runs(spec: TensorSpec) -> tuple[int, int]:
    """(number of contiguous runs, elements of one row in one run) of a piece in memory.

    Rows ``[a, b)`` of a piece are ``runs`` blocks of ``(b - a) * elements`` elements, one
    block every ``rows_of_piece * elements``.
    """
    if spec.axis is None:
        return 1, math.prod(spec.shape)
    order = spec.memory_order
    place = order.index(spec.axis)
    outer = math.prod(spec.shape[dim] for dim in order[:place])
    inner = math.prod(spec.shape[dim] for dim in order[place + 1 :])
    return outer, inner
