"""What is measured: models on emulated clusters, and who plans there.

All devices and links are emulated (:mod:`edgeflow_mpi.testbed`). Speeds are in GFLOP/s, two
operations for every multiply-add.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MODELS = ("mobilenet_v2", "googlenet", "resnet50", "inception_v3", "vgg16")
"""The cheapest first."""
GMACS = {
    "mobilenet_v2": 0.30, "googlenet": 1.5, "resnet50": 4.1, "inception_v3": 5.7, "vgg16": 15.5,
}  # fmt: skip
PARTITIONERS = (
    "joint", "equal", "lp", "single", "proportional", "exact", "fused", "aofl", "layers", "gather",
)  # fmt: skip
FEW = ("joint", "equal", "lp", "single")
"""Who takes part at other bandwidths."""
BANDWIDTH_MBPS = 93.7
OTHER_BANDWIDTHS_MBPS = (1000.0, 25.0)
LATENCY_MS = 0.2
OVERHEAD_US = 50
_FULL = 5.0
_ENOUGH_S = 0.045
_MOST_SLOWDOWN = 16


@dataclass(frozen=True)
class Cluster:
    """Devices of ``gflops`` each, rank 0 first, all pairs joined by links of one kind."""

    kind: str
    gflops: tuple[float, ...]
    bandwidth_mbps: float = BANDWIDTH_MBPS

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.bandwidth_mbps:g}".replace(".", "_")

    @property
    def devices(self) -> int:
        return len(self.gflops)

    @property
    def equal(self) -> bool:
        return len(set(self.gflops)) == 1

    def text(self, slowdown: int = 1) -> str:
        """Its cluster file, with everything ``slowdown`` times slower than it is."""
        lines = ["# Made by bench.policies, for launch/testbed.", "devices:"]
        lines += [
            f"  - {{name: d{rank}, gflops: {speed / slowdown:.10g},"
            f" overhead_us: {OVERHEAD_US * slowdown}}}"
            for rank, speed in enumerate(self.gflops)
        ]
        rate = f"bandwidth_mbps: {self.bandwidth_mbps / slowdown:.10g}"
        latency = f"latency_ms: {LATENCY_MS * slowdown:g}"
        lines += ["links:", f"  default: {{{rate}, {latency}}}", "network: switched"]
        return "\n".join(lines) + "\n"


KINDS = {
    "equal-2": (_FULL,) * 2,
    "equal-4": (_FULL,) * 4,
    "equal-8": (_FULL,) * 8,
    "unequal-4": (_FULL, _FULL, 0.5 * _FULL, 0.25 * _FULL),
    "fast-2-slow-6": (_FULL,) * 2 + (0.4 * _FULL,) * 6,
}
"""Eight boards and fewer; speeds of 1 : 1 : 0.5 : 0.25; two fast boards and six slow ones."""


@dataclass(frozen=True)
class Place:
    """A cell of the grid: a model on a cluster, and the partitioners that plan for it."""

    model: str
    cluster: Cluster
    partitioners: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.model} on {self.cluster.name}"


def slowdown(place: Place) -> int:
    """How many times slower than the cluster its testbed is, a power of two.

    The work of a rank between two messages, and of the machine for each message, is as it is.
    Where devices and links are so many times slower, it is so many times less beside theirs.
    The more devices share the machine, and the shorter a request, the more of that it takes.
    """
    work_s = 2 * GMACS.get(place.model, 4.0) / sum(place.cluster.gflops)
    slower = 1
    while slower < _MOST_SLOWDOWN and slower * work_s < _ENOUGH_S * place.cluster.devices:
        slower *= 2
    return slower


def clusters(bandwidths_mbps: Iterable[float] | None = None) -> tuple[Cluster, ...]:
    """All clusters of the grid at these bandwidths, by default at all of them."""
    wanted = tuple(bandwidths_mbps or (BANDWIDTH_MBPS, *OTHER_BANDWIDTHS_MBPS))
    return tuple(Cluster(kind, speeds, mbps) for mbps in wanted for kind, speeds in KINDS.items())


def places(
    models: Iterable[str], where: Iterable[Cluster], partitioners: Iterable[str] | None = None
) -> tuple[Place, ...]:
    """The cells of these models and clusters, the cheapest first."""
    chosen = None if partitioners is None else tuple(partitioners)

    def who(cluster: Cluster) -> tuple[str, ...]:
        if chosen is not None:
            return chosen
        return PARTITIONERS if cluster.bandwidth_mbps == BANDWIDTH_MBPS else FEW

    found = [Place(model, cluster, who(cluster)) for cluster in where for model in models]
    return tuple(sorted(found, key=weight))


def weight(place: Place) -> float:
    """About how long a cell takes, in seconds of nobody's machine."""
    cluster = place.cluster
    # Requests take the model's work at the devices' speed; a rank takes its time to start, and
    # so does every plan on every rank.
    work_s = 2 * GMACS.get(place.model, 4.0) / sum(cluster.gflops)
    alone_s = 2 * GMACS.get(place.model, 4.0) / max(cluster.gflops)
    plans = len(place.partitioners)
    moved_s = 4.0 / cluster.bandwidth_mbps
    return (
        15
        + 1.5 * cluster.devices
        + plans * (5 * slowdown(place) * (work_s + moved_s) + 0.3 * cluster.devices)
        + 3 * slowdown(place) * alone_s
    )
