"""Slow devices on a fast machine: how long every unit is to take on the device it stands for.

A cluster file states a device's speed. What a unit takes here is measured: the processor time of
its very kernel, called again and again, so that its weights are in the shared cache. One factor
for each device stretches it. The factor is such that the unsplit model takes what the file says,
its multiply-adds at the device's speed; and every unit takes the file's overhead in place of
what a call costs here. So layers keep the relations that real kernels give them, thin slices of a
layer are as inefficient as they are, and faster kernels do not make the device faster.

A unit's time is settled before the first request. The processor time of each single call times
the factor would multiply the noise of a machine that is shared by all devices, and above all its
cache misses: eight ranks that take turns find none of their weights in the caches, and a memory
slowed down twenty times is that of no device.

Every rank of the job must run on one machine, as all share one list of prices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from edgeflow_mpi.cluster.agree import agree
from edgeflow_mpi.cluster.cluster_file import NO_LIMIT_BYTES, ClusterSpec
from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.cluster.devices import host_memory_bytes
from edgeflow_mpi.cluster.fit import fit_affine
from edgeflow_mpi.cluster.measure import (
    centred,
    distinct_layers,
    row_counts,
    time_calls,
)
from edgeflow_mpi.cluster.profile import Device, LayerCost
from edgeflow_mpi.cluster.random_data import prepared_call, random_weights
from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.spans import Span

UnitTimes = Literal["kernels", "stated"]
Price = tuple[str, int]
"""Signature of a layer, and rows."""

_WINDOW_S = 0.003
TURNS = 4
"""How often every kernel is measured."""
_BUSY = 0.8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Calibration:
    """How the machine's times become those of the devices.

    ``factors[i]`` stretches processor time for device i; ``call_s`` is what a call costs here
    whatever it computes, which a device's own overhead replaces.
    """

    factors: tuple[float, ...]
    call_s: float


class Emulator:
    """Times of units on the devices of a cluster file; the same on every rank.

    Parameters
    ----------
    spec : the devices; rank i stands for device i.
    graph, needs : the same on every rank.
    times : ``kernels`` stretches what kernels take here; ``stated`` takes the file's word, two
        operations for each multiply-add at the device's speed and the overhead.
    """

    def __init__(
        self, spec: ClusterSpec, graph: Graph, needs: Needs, times: UnitTimes = "kernels"
    ) -> None:
        self.spec = spec
        self.times = times
        self.calibration: Calibration | None = None
        self._graph = graph
        self._needs = needs
        self._prices: dict[Price, float] = {}

    def calibrate(self, comm: Communicator, cores: int, progress: Progress) -> str | None:
        """Find the devices' factors; collective.

        Returns
        -------
        str or None
            A warning, if the machine is too small to be all the devices at once.

        Raises
        ------
        ClusterError
            On all ranks, when the file has not a device for each of them, when they are not on
            one machine, or when a device is faster than this machine.
        """
        boots = comm.allgather(_boot())
        agree(comm, self._unfit(comm.Get_size(), boots))
        ranks = comm.Get_size()
        self._learn(comm, cores, progress, self._points(ranks))
        call_s = min(self._prices.values())
        layers = self._layers()
        busy_s = sum(self._prices[self._key(layer, layer.rows)] - call_s for layer in layers)
        work = 2 * sum(layer.macs for layer in layers)
        factors = tuple(
            work / device.flops / max(busy_s, 1e-9) if work else 1.0 for device in self.spec.devices
        )
        self.calibration = Calibration(factors, call_s)
        fastest = min(range(ranks), key=lambda rank: factors[rank])
        if factors[fastest] < 1:
            agree(comm, ClusterError(
                f"{self.spec.names[fastest]} cannot be emulated: it does "
                f"{self.spec.devices[fastest].flops / 1e9:g} GFLOP/s, and a core of this machine "
                f"does {work / busy_s / 1e9:.0f} on {self._graph.name}"
            ))  # fmt: skip
        load = sum(1 / factor for factor in factors)
        if load <= _BUSY * cores:
            return None
        return (
            f"the devices together do {load:.1f} cores' work and this machine has {cores}: "
            "units will end later than they should"
        )

    def on(self, graph: Graph, needs: Needs) -> Emulator:
        """The same devices for a graph that was made of this one's; prices are shared."""
        other = copy.copy(self)
        other._graph, other._needs = graph, needs
        return other

    def learn(
        self, comm: Communicator, cores: int, progress: Progress,
        units: Iterable[tuple[str, int]],
    ) -> None:  # fmt: skip
        """Measure kernels for these rows of these layers, where that was not done; collective."""
        if self.times == "kernels":
            self._learn(comm, cores, progress, units)

    def seconds(self, rank: int, layer_name: str, rows: int) -> float:
        """What device ``rank`` takes for ``rows`` rows of a compute layer."""
        assert self.calibration is not None
        layer = self._graph.by_name[layer_name]
        device = self.spec.devices[rank]
        if self.times == "stated":
            share = rows / max(layer.rows, 1)
            return device.overhead_s + 2 * layer.macs * share / device.flops
        price_s = max(self._prices[self._key(layer, rows)] - self.calibration.call_s, 0.0)
        return device.overhead_s + self.calibration.factors[rank] * price_s

    def costs(self) -> tuple[dict[str, LayerCost], ...]:
        """What a measurement of all layers on the devices finds, as in a profile."""
        ranks = len(self.spec.devices)
        return tuple(
            {
                self._graph.signatures[layer.name]: fit_affine(
                    [
                        (rows, max(self.seconds(rank, layer.name, rows), 1e-9))
                        for rows in _finer(layer, ranks)
                    ]
                )
                for layer in distinct_layers(self._graph)
            }
            for rank in range(ranks)
        )

    def devices(self, hosts: Iterable[str]) -> tuple[Device, ...]:
        """The devices as a profile describes them; memory is the file's."""
        here = host_memory_bytes() // max(len(self.spec.devices), 1)
        return tuple(
            Device(
                device.name, 1,
                here if device.memory_bytes == NO_LIMIT_BYTES else device.memory_bytes,
                host, f"emulated, {device.flops / 1e9:g} GFLOP/s",
            )
            for device, host in zip(self.spec.devices, hosts, strict=True)
        )  # fmt: skip

    def _layers(self) -> list[Layer]:
        return [layer for layer in self._graph.layers if layer.kind == "compute"]

    def _points(self, ranks: int) -> list[tuple[str, int]]:
        return [
            (layer.name, rows)
            for layer in distinct_layers(self._graph)
            for rows in _finer(layer, ranks)
        ]

    def _key(self, layer: Layer, rows: int) -> Price:
        return self._graph.signatures[layer.name], rows

    def _unfit(self, ranks: int, boots: list[str]) -> ClusterError | None:
        count = len(self.spec.devices)
        if count != ranks:
            return ClusterError(
                f"{self.spec.name} describes {count} device{'s' * (count != 1)} and the job has "
                f"{ranks} rank{'s' * (ranks != 1)}: an emulated device is one rank"
            )
        if len(set(boots)) > 1:
            return ClusterError(
                "emulated devices must be ranks of one machine, and these run on several"
            )
        return None

    @torch.inference_mode()
    def _learn(
        self, comm: Communicator, cores: int, progress: Progress,
        wanted: Iterable[tuple[str, int]],
    ) -> None:  # fmt: skip
        """As many ranks as there are cores measure, each its share, and all get everything.

        Every kernel has several turns, and its best one counts: other work slows a machine down
        by a quarter for seconds, and prices of different moments are to be compared.
        """
        missing: dict[Price, Layer] = {}
        for name, rows in sorted(set(wanted)):
            layer = self._graph.by_name[name]
            if self._key(layer, rows) not in self._prices:
                missing.setdefault(self._key(layer, rows), layer)
        workers = max(min(comm.Get_size(), cores), 1)
        rank = comm.Get_rank()
        mine = list(missing.items())[rank::workers] if rank < workers else []
        found: dict[Price, float] = {}
        error: Exception | None = None
        try:
            runs: dict[Price, Callable[[], object]] = {}
            for count, ((signature, rows), layer) in enumerate(mine, 1):
                progress.update(f"kernel {count} of {len(mine)}: {rows} rows of {layer.name}")
                runs[signature, rows] = self._call(layer, rows)
            for turn in range(1, TURNS + 1):
                progress.update(f"{len(runs)} kernels, turn {turn} of {TURNS}")
                for price, run in runs.items():
                    run()
                    seconds = time_calls(run, _WINDOW_S).cpu_s
                    found[price] = min(found.get(price, seconds), seconds)
        except Exception as raised:  # noqa: BLE001 (all ranks must learn of it)
            error = raised
        agree(comm, error)
        for part in comm.allgather(found):
            self._prices |= part

    def _call(self, layer: Layer, rows: int) -> Callable[[], object]:
        """The kernel of so many rows, with inputs."""
        span = centred(layer.rows, rows) if layer.splits else Span.of(0, layer.rows)
        weights = random_weights(self._graph, layer)
        kernel = prepare(self._graph, layer, span, weights, self._needs)
        return prepared_call(self._graph, layer, kernel)


def _finer(layer: Layer, ranks: int) -> tuple[int, ...]:
    """The rows at which a profile measures the layer, and those halfway from one to the next.

    Whole maps may take a third more a row than halves, which stay in a core's own cache. Here a
    kernel is measured once for all devices, so that there is time to find out from where on.
    """
    counts = sorted({*row_counts(layer, ranks), layer.rows})
    return tuple(sorted({*counts, *((a + b) // 2 for a, b in pairwise(counts))}))


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
