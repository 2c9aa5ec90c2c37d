"""What was measured: how fast every device computes, how fast every link carries.

A :class:`Profile` is a frozen value that a person can read in its YAML form. Nothing here
measures anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    (rows, seconds) that the line was fitted to.
    """

    fixed_s: float
    per_row_s: float
    points: tuple[tuple[int, float], ...] = ()

    def seconds(self, rows: int) -> float:
        return self.fixed_s + self.per_row_s * rows if rows > 0 else 0.0


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
    present for every i != j. ``created`` (ISO 8601, UTC) and ``versions`` (package ->
    version) say when and with what it was measured.
    """

    model: str
    fingerprint: str
    devices: tuple[Device, ...]
    costs: tuple[Mapping[str, LayerCost], ...]
    links: Mapping[tuple[int, int], Link]
    created: str = ""
    versions: tuple[tuple[str, str], ...] = ()
