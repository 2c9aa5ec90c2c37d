"""What was measured: how fast every device computes, how fast every link carries.

A :class:`Profile` is a frozen value that a person can read in its YAML form. Nothing here
measures anything.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, TypeAlias

from edgeflow_mpi.kernels.names import DEFAULT

Network: TypeAlias = Literal["switched", "shared"]


@dataclass(frozen=True)
class Device:
    """One rank's device. ``memory_bytes`` is what a plan may use of it.

    ``name`` must be unique in a profile: the host's, with ``/k`` for the k-th of several
    ranks on one host. ``cpu`` is what the processor calls itself.
    """

    name: str
    threads: int
    memory_bytes: int
    host: str = ""
    cpu: str = ""


@dataclass(frozen=True)
class LayerCost:
    """Computation time of ``rows`` rows of one layer: ``fixed_s + per_row_s * rows``.

    Both are at least 0; an empty span takes no time. ``points`` are the measurements
    (rows, seconds) that the line was fitted to, sorted by rows; ``engines``, empty or as many,
    names for each of them the engine that was the fastest.
    """

    fixed_s: float
    per_row_s: float
    points: tuple[tuple[int, float], ...] = ()
    engines: tuple[str, ...] = ()

    def seconds(self, rows: int) -> float:
        return self.fixed_s + self.per_row_s * rows if rows > 0 else 0.0

    def measured_seconds(self, rows: int) -> float:
        """As :meth:`seconds`, but along the measured points, from one to the next.

        What a kernel takes grows by steps, with tiles and blocks of rows; the line, which
        planners need, is off by a tenth at some numbers of rows. Never falls when rows are added.
        """
        if not self.points or rows <= 0:
            return self.seconds(rows)
        places = [0, *(count for count, _ in self.points)]
        least_s = min(self.fixed_s, self.points[0][1])
        times_s = list(accumulate((least_s, *(seconds for _, seconds in self.points)), max))
        if rows > places[-1]:
            return times_s[-1] + self.per_row_s * (rows - places[-1])
        after = bisect_left(places, rows)
        share = (rows - places[after - 1]) / (places[after] - places[after - 1])
        return times_s[after - 1] + share * (times_s[after] - times_s[after - 1])

    def scaled(self, factor: float) -> LayerCost:
        """The cost on a device that takes ``factor`` times as long."""
        points = tuple((rows, seconds * factor) for rows, seconds in self.points)
        return LayerCost(self.fixed_s * factor, self.per_row_s * factor, points, self.engines)

    def engine(self, rows: int) -> str:
        """The fastest engine at the measured number of rows that is nearest by ratio.

        ``default`` where no engines were measured.
        """
        if not self.engines:
            return DEFAULT
        nearest = min(
            range(len(self.engines)), key=lambda i: abs(math.log(max(rows, 1) / self.points[i][0]))
        )
        return self.engines[nearest]


@dataclass(frozen=True)
class Link:
    """One direction of a link: a message of b bytes takes latency_s + b / bandwidth."""

    latency_s: float
    bandwidth_bytes_s: float

    def seconds(self, size_bytes: int) -> float:
        return self.latency_s + size_bytes / self.bandwidth_bytes_s


@dataclass(frozen=True)
class Profile:
    """Costs of one model's layers on a set of devices, and the links between them.

    ``costs[i]`` maps a layer signature (:attr:`Graph.signatures`) to its cost on device i,
    one for every layer of kind ``compute``; ``links[(i, j)]`` is the direction i -> j,
    present for every i != j. ``stretches[i]`` (at least 1) is how much longer the costs of
    device i are because ranks on its host took turns on the same cores while they were
    measured; empty stands for 1 everywhere. ``created`` (ISO 8601, UTC) and ``versions``
    (package -> version) say when and with what it was measured.

    ``network`` says whether links carry messages side by side (``switched``) or take turns on
    one medium, as in a wireless network (``shared``). ``message_cpu_s[i]`` is how long a
    message keeps the processor of device i, as its sender and as its receiver; empty stands
    for 0 everywhere.
    """

    model: str
    fingerprint: str
    devices: tuple[Device, ...]
    costs: tuple[Mapping[str, LayerCost], ...]
    links: Mapping[tuple[int, int], Link]
    stretches: tuple[float, ...] = ()
    created: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    network: Network = "switched"
    message_cpu_s: tuple[float, ...] = ()

    def among(self, active: Collection[int]) -> Profile:
        """The profile as it is when only the ranks ``active`` compute.

        All ranks of a host are measured at the same time. Where they take turns on its cores
        and a plan uses fewer of them, those that it uses are faster than measured: stretched
        in proportion to the active ranks of their host, but never faster than undisturbed.
        It must be asked of a profile as it was measured, not of one that this returned.
        """
        if max(self.stretches, default=1.0) <= 1.0:
            return self
        hosts = [device.host or device.name for device in self.devices]
        ranks_on = Counter(hosts)
        active_on = Counter(hosts[rank] for rank in active)
        costs = list(self.costs)
        stretches = list(self.stretches)
        for rank in active:
            share = active_on[hosts[rank]] / ranks_on[hosts[rank]]
            stretches[rank] = max(1.0, self.stretches[rank] * share)
            factor = stretches[rank] / self.stretches[rank]
            if factor < 1.0:
                costs[rank] = {key: cost.scaled(factor) for key, cost in costs[rank].items()}
        return replace(self, costs=tuple(costs), stretches=tuple(stretches))
