"""What the time of a rank is spent on, unit by unit: kernels, copies, messages, waiting, the rest.

A unit's time begins where that of the unit before ended (or where the request began, if it is
the first), so the units' times add up to the request's. It is free where nobody asks for it: an
executor without a meter calls the very functions that one with a meter wraps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgeflow_mpi.runtime.transport import NativeRequests, Region, Transport
from edgeflow_mpi.units.tables import Transfer

Part = Literal["kernel", "copy", "requests", "waiting", "dispatch"]
PARTS: tuple[Part, ...] = get_args(Part)
"""``kernel``: computing. ``copy``: tensors moved within this rank's memory. ``requests``: calls
that start messages or ask for them while there is something to do. ``waiting``: nothing to do, for
want of messages. ``dispatch``: all else, which is the executor's own work."""


class Meter:
    """Sums of seconds by unit and part, over all requests since :meth:`reset`.

    Parameters
    ----------
    units : how many units the rank has.

    Attributes
    ----------
    requests : how many requests have ended since then.
    """

    def __init__(self, units: int) -> None:
        self._sums = [dict.fromkeys(PARTS, 0.0) for _ in range(units)]
        self._open = dict.fromkeys(PARTS, 0.0)
        self._since_s = 0.0
        self._under_way = 0
        self._waits = False
        self.requests = 0

    def reset(self) -> None:
        """Forget all that was; to be called when no request is under way."""
        self._sums = [dict.fromkeys(PARTS, 0.0) for _ in self._sums]
        self.requests = 0

    def timed(self, part: Part, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, whose time counts as ``part``; it must not call another such function."""

        def metered(*arguments: Any) -> Any:
            if self._waits:  # all of it is waiting
                return call(*arguments)
            started_s = time.perf_counter()
            result = call(*arguments)
            self._open[part] += time.perf_counter() - started_s
            return result

        return metered

    def waiting(self, wait: Callable[[], float]) -> float:
        """Wait, and count it as that."""
        started_s, self._waits = time.perf_counter(), True
        try:
            return wait()
        finally:
            self._waits = False
            self._open["waiting"] += time.perf_counter() - started_s

    def idle(self) -> None:
        """Nothing was ready: asking for messages since the last unit was waiting."""
        self._open["waiting"] += self._open["requests"]
        self._open["requests"] = 0.0

    def over(self, transport: Transport) -> Transport:
        """The transport, whose calls count as ``requests``."""
        return _Metered(transport, self)

    def begin(self) -> None:
        """A request begins."""
        if not self._under_way:
            self._open = dict.fromkeys(PARTS, 0.0)
            self._since_s = time.perf_counter()
        self._under_way += 1

    def spent(self, part: Part, seconds: float) -> None:
        """Time of the next unit that was taken elsewhere."""
        self._open[part] += seconds

    def close(self, unit: int, *, last: bool, ended_s: float | None = None) -> None:
        """A unit is done, now or since ``ended_s``: what has passed since the one before is its
        time."""
        now_s, parts = time.perf_counter() if ended_s is None else ended_s, self._open
        parts["dispatch"] = now_s - self._since_s - sum(parts.values())
        sums = self._sums[unit]
        for part in PARTS:
            sums[part] += parts[part]
            parts[part] = 0.0
        self._since_s = now_s
        if last:
            self._under_way -= 1
            self.requests += 1

    def resume(self) -> None:
        """What was spent since the last unit on taking all this down is nobody's."""
        self._since_s = time.perf_counter()

    def units_ms(self) -> tuple[Mapping[Part, float], ...]:
        """Milliseconds by part of every unit, for one request."""
        count = max(self.requests, 1)
        return tuple(
            {part: 1e3 * seconds / count for part, seconds in sums.items()} for sums in self._sums
        )


@dataclass
class _Metered:
    """A transport whose calls' time is taken."""

    transport: Transport
    meter: Meter

    def __post_init__(self) -> None:
        timed, transport = self.meter.timed, self.transport
        self._start_receives = timed("requests", transport.start_receives)
        self._start_sends = timed("requests", transport.start_sends)
        self._arrived = timed("requests", transport.arrived)
        self._settle = timed("requests", transport.settle)
        self._sends_complete = timed("requests", transport.sends_complete)

    def open_receive(self, transfer: Transfer, region: Region) -> int:
        return self.transport.open_receive(transfer, region)

    def open_send(self, transfer: Transfer, region: Region) -> int:
        return self.transport.open_send(transfer, region)

    def start_receives(self, handles: Sequence[int]) -> None:
        self._start_receives(handles)

    def start_sends(self, handles: Sequence[int]) -> None:
        self._start_sends(handles)

    def arrived(self, handles: Sequence[int]) -> list[int]:
        found: list[int] = self._arrived(handles)
        return found

    def settle(self, handles: Sequence[int]) -> None:
        self._settle(handles)

    def sends_complete(self) -> bool:
        return bool(self._sends_complete())

    def untaken(self) -> list[int]:
        return self.transport.untaken()

    def native(self) -> NativeRequests | None:
        return self.transport.native()

    def close(self) -> None:
        self.transport.close()


__all__ = ["PARTS", "Meter", "Part"]
