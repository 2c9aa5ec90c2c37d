"""A network inside one process, for running all ranks under test.

A send completes only when its receive has been posted: there is no eager buffering, so an
executor that would deadlock makes no progress here. The data moves at that moment, or, on a
network that is *late*, as late as MPI may move it: when the receiver looks, and then only with
even odds. So an executor that reuses a buffer too early gives a wrong answer here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import torch

from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.units.tables import Transfer

Filter = Callable[[Transfer, torch.Tensor], None]
"""May change what arrives, in place; for planting faults."""

_Key = tuple[int, int, int]


@dataclass
class MemoryNetwork:
    """Connects ``size`` transports; ``on_delivery`` sees every delivered region.

    ``late``, if given, throws the dice for every message that could move.
    """

    size: int
    on_delivery: Filter | None = None
    late: Random | None = None
    sending: dict[_Key, tuple[Transfer, Region]] = field(default_factory=dict)
    receiving: dict[_Key, tuple[Transfer, Region]] = field(default_factory=dict)
    delivered: int = 0

    def transport(self, rank: int) -> MemoryTransport:
        return MemoryTransport(self, rank)

    @property
    def moving(self) -> bool:
        """Whether a message only waits for the receiver to look."""
        return any(key in self.receiving for key in self.sending)

    def match(self, key: _Key) -> None:
        """Deliver if both ends of a channel have started."""
        if key in self.sending and key in self.receiving:
            transfer, source = self.sending.pop(key)
            _, target = self.receiving.pop(key)
            if source.view.shape != target.view.shape:
                raise AssertionError(f"{transfer} changes shape on the way")
            target.view.copy_(source.view)
            self.delivered += 1
            if self.on_delivery is not None:
                self.on_delivery(transfer, target.view)

    def started(self, key: _Key) -> None:
        """One end of a channel has started."""
        if self.late is None:
            self.match(key)

    def looked(self, key: _Key) -> None:
        """The receiver looks whether anything has come."""
        if self.late is not None and self.late.random() < 0.5:
            self.match(key)


class MemoryTransport:
    """One rank's end of a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, rank: int) -> None:
        self._network = network
        self._rank = rank
        self._receives: list[tuple[_Key, Transfer, Region]] = []
        self._sends: list[tuple[_Key, Transfer, Region]] = []
        self._posted: set[int] = set()

    def open_receive(self, transfer: Transfer, region: Region) -> int:
        self._receives.append((self._key(transfer), transfer, region))
        return len(self._receives) - 1

    def open_send(self, transfer: Transfer, region: Region) -> int:
        self._sends.append((self._key(transfer), transfer, region))
        return len(self._sends) - 1

    def start_receives(self, handles: Sequence[int]) -> None:
        for handle in handles:
            key, transfer, region = self._receives[handle]
            if key in self._network.receiving:
                raise AssertionError(f"{transfer} is received twice at once")
            self._network.receiving[key] = (transfer, region)
            self._posted.add(handle)
            self._network.started(key)

    def start_sends(self, handles: Sequence[int]) -> None:
        for handle in handles:
            key, transfer, region = self._sends[handle]
            if key in self._network.sending:
                raise AssertionError(f"{transfer} is sent twice at once")
            self._network.sending[key] = (transfer, region)
            self._network.started(key)

    def arrived(self, handles: Sequence[int]) -> list[int]:
        found = []
        for handle in handles:
            key = self._receives[handle][0]
            self._network.looked(key)
            if handle in self._posted and key not in self._network.receiving:
                self._posted.remove(handle)
                found.append(handle)
        return found

    def settle(self, handles: Sequence[int]) -> None:
        for handle in handles:
            key, transfer, _ = self._sends[handle]
            if key in self._network.sending:
                raise AssertionError(f"the memory of {transfer} would change before it arrives")

    def sends_complete(self) -> bool:
        return not any(key in self._network.sending for key, _, _ in self._sends)

    def untaken(self) -> list[int]:
        keys = (key for key, _, _ in self._sends)
        return [handle for handle, key in enumerate(keys) if key in self._network.sending]

    def native(self) -> None:
        return None

    def close(self) -> None:
        self._receives.clear()
        self._sends.clear()

    @staticmethod
    def _key(transfer: Transfer) -> _Key:
        return transfer.source, transfer.dest, transfer.tag
