"""Channels as persistent MPI requests, straight from and into tensor memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

from mpi4py import MPI

from edgeflow_mpi.runtime.transport import NativeRequests, Region
from edgeflow_mpi.units.tables import Transfer


class MpiTransport:
    """Channels of this rank over a communicator of their own.

    The communicator is duplicated, collectively, so that no tag can meet a message of
    somebody else's. Rows of one image are one run of bytes; a batch is a vector of them,
    which MPI reads in place.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm.Dup()
        self._receives: list[MPI.Prequest] = []
        self._sends: list[MPI.Prequest] = []
        self._sending = self._native = False
        self._types: list[MPI.Datatype] = []

    def open_receive(self, transfer: Transfer, region: Region) -> int:
        self._receives.append(
            self._comm.Recv_init(self._buffer(region), transfer.source, transfer.tag)
        )
        return len(self._receives) - 1

    def open_send(self, transfer: Transfer, region: Region) -> int:
        self._sends.append(self._comm.Send_init(self._buffer(region), transfer.dest, transfer.tag))
        return len(self._sends) - 1

    def _buffer(self, region: Region) -> tuple[MPI.buffer, int, MPI.Datatype]:
        length = (region.blocks - 1) * region.stride_bytes + region.block_bytes
        memory = MPI.buffer.fromaddress(region.view.data_ptr(), length)
        if region.blocks == 1:
            return memory, length, MPI.BYTE
        kind = MPI.BYTE.Create_hvector(region.blocks, region.block_bytes, region.stride_bytes)
        self._types.append(kind.Commit())
        return memory, 1, kind

    def start_receives(self, handles: Sequence[int]) -> None:
        if handles:
            MPI.Prequest.Startall([self._receives[handle] for handle in handles])

    def start_sends(self, handles: Sequence[int]) -> None:
        requests = [self._sends[handle] for handle in handles]
        if len(requests) == 1:
            requests[0].Start()
        else:
            MPI.Prequest.Startall(requests)
        self._sending = True

    def arrived(self, handles: Sequence[int]) -> list[int]:
        # Inactive requests, complete or not posted yet, are skipped.
        done = MPI.Request.Testsome([self._receives[handle] for handle in handles])
        return [handles[index] for index in done] if done else []

    def settle(self, handles: Sequence[int]) -> None:
        # They have arrived, so this waits for nobody: it only lets MPI notice.
        MPI.Request.Waitall([self._sends[handle] for handle in handles])

    def sends_complete(self) -> bool:
        if self._sending or self._native:  # machine code starts some unseen
            # Those that were not started, or are complete, count as done.
            self._sending = not MPI.Request.Testall(self._sends)
        return not self._sending

    def untaken(self) -> list[int]:
        # One that has completed, or was never started, is inactive, which counts as done.
        return [handle for handle, request in enumerate(self._sends) if not request.Test()]

    def native(self) -> NativeRequests | None:
        functions = _functions()
        if functions is None:
            return None
        start, test, wait = functions

        def handles(
            requests: Sequence[MPI.Prequest], wanted: Sequence[int]
        ) -> ctypes.Array[ctypes.c_char]:
            size = MPI._sizeof(MPI.Request)
            found = (ctypes.string_at(MPI._addressof(requests[i]), size) for i in wanted)
            return ctypes.create_string_buffer(b"".join(found), size * len(wanted))

        def sends(wanted: Sequence[int]) -> ctypes.Array[ctypes.c_char]:
            return handles(self._sends, wanted)

        def receives(wanted: Sequence[int]) -> ctypes.Array[ctypes.c_char]:
            return handles(self._receives, wanted)

        self._native = True
        return NativeRequests(
            start, test, wait, MPI._sizeof(MPI.Request), MPI._sizeof(MPI.Status), receives, sends
        )

    def close(self) -> None:
        for request in (*self._receives, *self._sends):
            request.Free()
        for kind in self._types:
            kind.Free()
        self._receives, self._sends, self._types = [], [], []
        self._comm.Free()


@cache
def _functions() -> tuple[int, int, int] | None:
    """Addresses of MPI's functions, in the library that mpi4py has loaded."""
    try:
        library = ctypes.CDLL(MPI.__file__)
        found = [getattr(library, f"MPI_{name}all") for name in ("Start", "Test", "Wait")]
    except (AttributeError, OSError):
        return None
    start, test, wait = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found)
    return start, test, wait
