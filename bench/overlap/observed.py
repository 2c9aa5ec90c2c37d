"""A transport that takes down when messages leave and are noticed, and that can hide nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.overlap.account import Wire
from edgeflow_mpi.errors import StallError
from edgeflow_mpi.runtime.transport import Region, Transport
from edgeflow_mpi.units.tables import Transfer

_LOOK_S = 20e-6


class Observed:
    """``transport``, with times by the clock that the ranks of a machine share.

    Parameters
    ----------
    wire : what a message's link makes of it.
    timeout_s : how long to wait, when blocking, for messages to be taken.

    Attributes
    ----------
    sent, noticed : when each message was handed over, or taken note of, since :meth:`forget`.
    blocking : whether a unit's messages are waited for before the rank does anything else: until
        MPI has done with them, and until their links, at their rates, have carried them, as
        sending is done with when the last byte is in a buffer of the kernel.
    rest : called after that, for the time was spent on purpose.
    """

    def __init__(
        self, transport: Transport, wire: Callable[[Transfer], Wire], timeout_s: float
    ) -> None:
        self._transport, self._wire, self._timeout_s = transport, wire, timeout_s
        self._incoming: list[Transfer] = []
        self._outgoing: list[Transfer] = []
        self.sent: dict[Transfer, float] = {}
        self.noticed: dict[Transfer, float] = {}
        self.blocking = False
        self.rest: Callable[[], None] = lambda: None

    def forget(self) -> None:
        """A new request begins."""
        self.sent, self.noticed = {}, {}

    def open_receive(self, transfer: Transfer, region: Region) -> int:
        self._incoming.append(transfer)
        return self._transport.open_receive(transfer, region)

    def open_send(self, transfer: Transfer, region: Region) -> int:
        self._outgoing.append(transfer)
        return self._transport.open_send(transfer, region)

    def start_receives(self, handles: Sequence[int]) -> None:
        self._transport.start_receives(handles)

    def start_sends(self, handles: Sequence[int]) -> None:
        now_s = time.perf_counter()
        for handle in handles:
            self.sent[self._outgoing[handle]] = now_s
        self._transport.start_sends(handles)
        if self.blocking:
            costs = [self._wire(self._outgoing[handle]) for handle in handles]
            latency_s = max(cost.latency_s for cost in costs)
            self._wait(now_s + latency_s + sum(cost.occupied_s for cost in costs))

    def _wait(self, until_s: float) -> None:
        late_s = max(until_s, time.perf_counter()) + self._timeout_s
        while not self._transport.sends_complete() or time.perf_counter() < until_s:
            if time.perf_counter() > late_s:
                raise StallError(f"no message has moved for {self._timeout_s:g} s (--timeout)")
            time.sleep(_LOOK_S)
        self.rest()

    def arrived(self, handles: Sequence[int]) -> list[int]:
        found = self._transport.arrived(handles)
        if found:
            now_s = time.perf_counter()
            for handle in found:
                self.noticed[self._incoming[handle]] = now_s
        return found

    def settle(self, handles: Sequence[int]) -> None:
        self._transport.settle(handles)

    def sends_complete(self) -> bool:
        return self._transport.sends_complete()

    def untaken(self) -> list[int]:
        return self._transport.untaken()

    def native(self) -> None:
        return None  # every message is to be seen here

    def close(self) -> None:
        self._transport.close()
