"""Channels as persistent MPI requests, straight from and into tensor memory."""

from __future__ import annotations

from collections.abc import Sequence

from mpi4py import MPI

from edgeflow_mpi.runtime.transport import Region
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
        self._expected: list[bool] = []  # by receive: posted, and not known to be complete
        self._sends: list[MPI.Prequest] = []
        self._started: list[MPI.Prequest] = []
        self._types: list[MPI.Datatype] = []

    def open_receive(self, transfer: Transfer, region: Region) -> int:
        self._receives.append(
            self._comm.Recv_init(self._buffer(region), transfer.source, transfer.tag)
        )
        self._expected.append(False)
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
            for handle in handles:
                self._expected[handle] = True

    def start_sends(self, handles: Sequence[int]) -> None:
        requests = [self._sends[handle] for handle in handles]
        if len(requests) == 1:
            requests[0].Start()
        else:
            MPI.Prequest.Startall(requests)
        self._started += requests

    def arrived(self, handles: Sequence[int]) -> list[int]:
        if len(handles) == 1:  # as it is most often: no lists to convert
            # An inactive request, complete or not posted yet, would count as done.
            if not (self._expected[handles[0]] and self._receives[handles[0]].Test()):
                return []
            found = [handles[0]]
        else:  # which skips inactive requests by itself
            done = MPI.Request.Testsome([self._receives[handle] for handle in handles])
            found = [handles[index] for index in done] if done else []
        for handle in found:
            self._expected[handle] = False
        return found

    def settle(self, handles: Sequence[int]) -> None:
        # They have arrived, so this waits for nobody: it only lets MPI notice.
        MPI.Request.Waitall([self._sends[handle] for handle in handles])

    def sends_complete(self) -> bool:
        if self._started and not MPI.Request.Testall(self._started):
            return False
        self._started.clear()
        return True

    def untaken(self) -> list[int]:
        # One that has completed, or was never started, is inactive, which counts as done.
        return [handle for handle, request in enumerate(self._sends) if not request.Test()]

    def close(self) -> None:
        for request in (*self._receives, *self._sends):
            request.Free()
        for kind in self._types:
            kind.Free()
        self._receives, self._sends, self._types, self._expected = [], [], [], []
        self._comm.Free()
