"""What the executor asks of a network: persistent one-way channels between fixed memory.

A channel carries one transfer of the unit tables, once per request: it is opened once on a
region of a tensor, then started for every request. Two implementations:
:class:`~edgeflow_mpi.runtime.mpi.MpiTransport` and, for running all ranks in one process,
:class:`~edgeflow_mpi.runtime.memory.MemoryNetwork`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from edgeflow_mpi.graph.types import TensorSpec
from edgeflow_mpi.kernels.buffers import runs
from edgeflow_mpi.units.tables import Transfer


@dataclass(frozen=True)
class Region:
    """Rows of a tensor piece as they lie in memory.

    ``view`` is the tensor of these rows. In memory they are ``blocks`` runs of
    ``block_bytes`` each, ``stride_bytes`` apart, starting at the view's first element.
    """

    view: torch.Tensor
    blocks: int
    block_bytes: int
    stride_bytes: int

    @staticmethod
    def of(piece: torch.Tensor, spec: TensorSpec, start: int, rows: int) -> Region:
        """Rows ``[start, start + rows)``, counted within ``piece`` (canonical memory order)."""
        count, elements = runs(spec)
        size = piece.element_size()
        if spec.axis is None:
            return Region(piece, 1, elements * size, elements * size)
        held = piece.shape[spec.axis]
        view = piece.narrow(spec.axis, start, rows)
        if rows == held:
            count, elements = 1, count * elements
        return Region(view, count, rows * elements * size, held * elements * size)

    @property
    def size_bytes(self) -> int:
        return self.blocks * self.block_bytes


@dataclass(frozen=True)
class NativeRequests:
    """MPI's persistent requests as machine code calls them.

    Attributes
    ----------
    start_all, test_all, wait_all : int
        Addresses of ``MPI_Startall``, ``MPI_Testall`` and ``MPI_Waitall``.
    handle_bytes, status_bytes : int
        Sizes of a request's handle, and of a status.
    receives, sends : callable
        The requests' handles, of channels by theirs, one after the other in memory.
    """

    start_all: int
    test_all: int
    wait_all: int
    handle_bytes: int
    status_bytes: int
    receives: Callable[[Sequence[int]], ctypes.Array[ctypes.c_char]]
    sends: Callable[[Sequence[int]], ctypes.Array[ctypes.c_char]]


class Transport(Protocol):
    """Channels of one rank. A handle is a small integer, counted per direction."""

    def open_receive(self, transfer: Transfer, region: Region) -> int:
        """A channel that fills ``region``."""

    def open_send(self, transfer: Transfer, region: Region) -> int:
        """A channel that reads ``region``."""

    def start_receives(self, handles: Sequence[int]) -> None:
        """Post these receives; those of the last request must be complete."""

    def start_sends(self, handles: Sequence[int]) -> None:
        """Send what is in the regions now; they must not change until complete."""

    def arrived(self, handles: Sequence[int]) -> list[int]:
        """Which of these receives have completed since they were started; never blocks."""

    def settle(self, handles: Sequence[int]) -> None:
        """Complete these sends, which have arrived: their regions are going to change."""

    def sends_complete(self) -> bool:
        """Whether every started send has completed; never blocks."""

    def untaken(self) -> list[int]:
        """The started sends that have not completed, for explaining why nothing moves."""

    def native(self) -> NativeRequests | None:
        """How machine code may use the channels that are open now, if it may.

        What it starts and completes is as if it were done here.
        """

    def close(self) -> None:
        """Free the channels."""
