"""A network inside one process, for running all ranks under test.

A send completes only when its receive has been posted, and the data moves at that moment:
there is no eager buffering, so an executor that reuses a buffer too early gives a wrong
answer here, and one that would deadlock makes no progress here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.units.tables import Transfer

Filter = Callable[[Transfer, torch.Tensor], None]
"""May change what arrives, in place; for planting faults."""

_Key = tuple[int, int, int]


@dataclass
class MemoryNetwork:
    """Connects ``size`` transports; ``on_delivery`` sees every delivered region."""

    size: int
    on_delivery: Filter | None = None
    sending: dict[_Key, tuple[Transfer, Region]] = field(default_factory=dict)
    receiving: dict[_Key, tuple[Transfer, Region]] = field(default_factory=dict)
    delivered: int = 0

    def transport(self, rank: int) -> MemoryTransport:
        return MemoryTransport(self, rank)

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


class MemoryTransport:
    """One rank's end of a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, rank: int) -> None:
        self._network = network
        self._rank = rank
        self._receives: list[tuple[_Key, Transfer, Region]] = []
        self._sends: list[tuple[_Key, Transfer, Region]] = []

    def open_receive(self, transfer: Transfer, region: Region) -> int:
        self._receives.append((self._key(transfer), transfer, region))
        return len(self._receives) - 1

    def open_send(self, transfer: Transfer, region: Region) -> int:
        self._sends.append((self._key(transfer), transfer, region))
        return len(self._sends) - 1

    def start_receives(self) -> None:
        for key, transfer, region in self._receives:
            if key in self._network.receiving:
                raise AssertionError(f"{transfer} is received twice at once")
            self._network.receiving[key] = (transfer, region)
            self._network.match(key)

    def start_sends(self, handles: Sequence[int]) -> None:
        for handle in handles:
            key, transfer, region = self._sends[handle]
            if key in self._network.sending:
                raise AssertionError(f"{transfer} is sent twice at once")
            self._network.sending[key] = (transfer, region)
            self._network.match(key)

    def arrived(self, handles: Sequence[int]) -> list[int]:
        return [h for h in handles if self._receives[h][0] not in self._network.receiving]

    def sends_complete(self) -> bool:
        return not any(key in self._network.sending for key, _, _ in self._sends)

    def untaken(self) -> list[int]:
        keys = (key for key, _, _ in self._sends)
        return [handle for handle, key in enumerate(keys) if key in self._network.sending]

    def close(self) -> None:
        self._receives.clear()
        self._sends.clear()

    @staticmethod
    def _key(transfer: Transfer) -> _Key:
        return transfer.source, transfer.dest, transfer.tag
