"""Slow devices on a fast machine: how long every unit is to take on the device it stands for.

A cluster file states a device's speed. What a unit takes here is measured: the processor time of
its very kernel, called again and again, so that its weights are in the shared cache
(:mod:`edgeflow_mpi.cluster.prices`). One factor for each device stretches it. The factor is such
that the unsplit model takes what the file says, its multiply-adds at the device's speed; and every
unit takes the file's overhead in place of what a call costs here. So layers keep the relations that
real kernels give them, thin slices of a layer are as inefficient as they are, and faster kernels do
not make the device faster.

A unit's time is settled before the first request. The processor time of each single call times
the factor would multiply the noise of a machine that is shared by all devices, and above all its
cache misses: eight ranks that take turns find none of their weights in the caches, and a memory
slowed down twenty times is that of no device.

Every rank of the job must run on one machine, as all share one list of prices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeflow_mpi.cluster.agree import agree
from edgeflow_mpi.cluster.cluster_file import NO_LIMIT_BYTES, ClusterSpec
from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.cluster.devices import host_memory_bytes
from edgeflow_mpi.cluster.fit import fit_affine, fit_share
from edgeflow_mpi.cluster.measure import distinct_layers, row_counts
from edgeflow_mpi.cluster.prices import Kind, Prices, Subject, dense_rows, dense_shares
from edgeflow_mpi.cluster.profile import Device, LayerCost
from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.graph.division import PART, Division, can_divide, divided, multiplies
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.tail import weighty
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.progress import Progress

UnitTimes = Literal["kernels", "stated"]
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
    prices : what kernels take here; the same on every rank, and shared by graphs of one model.
    times : ``kernels`` stretches what kernels take here; ``stated`` takes the file's word, two
        operations for each multiply-add at the device's speed and the overhead.
    """

    def __init__(
        self, spec: ClusterSpec, graph: Graph, needs: Needs, prices: Prices,
        times: UnitTimes = "kernels",
    ) -> None:  # fmt: skip
        self.spec = spec
        self.times = times
        self.calibration: Calibration | None = None
        self._graph = graph
        self._needs = needs
        self._prices = prices

    def calibrate(self, comm: Communicator, cores: int, progress: Progress) -> str | None:
        """Measure kernels and find the devices' factors; collective.

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
        dense = self.times == "kernels" and ranks > 1
        subjects = self._subjects(ranks) if dense else self._wholes()
        self._prices.learn(comm, progress, subjects)
        call_s = self._prices.least_s(subjects)
        layers = [layer for layer in self._graph.layers if layer.kind == "compute"]
        busy_s = sum(self._price_s(layer, layer.rows) - call_s for layer in layers)
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
        self, comm: Communicator, progress: Progress, units: Iterable[tuple[str, int]]
    ) -> None:
        """Measure kernels for these rows of these layers, where that was not done; collective."""
        if self.times != "kernels":
            return
        rows: dict[str, set[int]] = {}
        for name, count in units:
            rows.setdefault(name, set()).add(count)
        subjects = [
            Subject(self._graph, self._needs, self._graph.by_name[name], tuple(counts))
            for name, counts in rows.items()
        ]
        self._prices.learn(comm, progress, subjects)

    def seconds(self, rank: int, layer_name: str, rows: int) -> float:
        """What device ``rank`` takes for ``rows`` rows of a compute layer."""
        assert self.calibration is not None
        layer = self._graph.by_name[layer_name]
        device = self.spec.devices[rank]
        if self.times == "stated":
            share = rows / max(layer.rows, 1)
            return device.overhead_s + 2 * layer.macs * share / device.flops
        return self._stretched_s(rank, self._price_s(layer, rows))

    def costs(self) -> tuple[dict[str, LayerCost], ...]:
        """What a measurement of all layers on the devices finds, as in a profile.

        Lines go through the points that a profile of a job has; what is measured are all.
        """
        ranks = len(self.spec.devices)
        found: tuple[dict[str, LayerCost], ...] = tuple({} for _ in range(ranks))
        for layer in distinct_layers(self._graph):
            signature = self._graph.signatures[layer.name]
            line = {*row_counts(layer, ranks), layer.rows}
            for rank, costs in enumerate(found):
                if self.times == "stated":
                    stated = [(rows, self.seconds(rank, layer.name, rows)) for rows in sorted(line)]
                    costs[signature] = fit_affine([(rows, max(s, 1e-9)) for rows, s in stated])
                else:
                    points, engines = self._points(rank, (signature, layer.rows))
                    cost = fit_affine([point for point in points if point[0] in line])
                    costs[signature] = replace(cost, points=points, engines=engines)
        if self.times == "kernels":
            self._add_shares(found)
        return found

    def _add_shares(self, found: Sequence[dict[str, LayerCost]]) -> None:
        """What parts by channels cost; all of them cost what the layer does."""
        for subject in self._shares(len(found)):
            origin = subject.graph.origin[subject.layer.name]
            signature, channels = subject.kind
            for rank, costs in enumerate(found):
                whole_s = costs[origin.signature].measured_seconds(origin.rows)
                points, engines = self._points(rank, subject.kind)
                points = (*(point for point in points if point[0] != channels), (channels, whole_s))
                cost = fit_share(points, channels, whole_s)
                costs[signature] = replace(cost, points=points, engines=engines)

    def _points(
        self, rank: int, kind: Kind
    ) -> tuple[tuple[tuple[int, float], ...], tuple[str, ...]]:
        """All that is known of a kind, on a device: rows and seconds, and the engines."""
        prices = sorted(self._prices.of(kind).items())
        return (
            tuple((rows, max(self._stretched_s(rank, one.seconds), 1e-9)) for rows, one in prices),
            tuple(one.engine for _, one in prices),
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

    def _stretched_s(self, rank: int, price_s: float) -> float:
        assert self.calibration is not None
        work_s = max(price_s - self.calibration.call_s, 0.0)
        return self.spec.devices[rank].overhead_s + self.calibration.factors[rank] * work_s

    def _price_s(self, layer: Layer, rows: int) -> float:
        kind = self._graph.signatures[layer.name], layer.rows
        return self._prices.of(kind)[rows].seconds

    def _wholes(self) -> list[Subject]:
        return [
            Subject(self._graph, self._needs, layer, (layer.rows,))
            for layer in distinct_layers(self._graph)
        ]

    def _subjects(self, ranks: int) -> list[Subject]:
        """All that a plan may be made of, nearly."""
        rows = [
            Subject(self._graph, self._needs, layer, dense_rows(layer))
            for layer in distinct_layers(self._graph)
        ]
        return [*rows, *self._shares(ranks)]

    def _shares(self, ranks: int) -> Iterator[Subject]:
        """Layers of many weights by their outputs, linear ones by their inputs as well."""
        graph = self._graph
        outputs = weighty(graph, ranks)
        inputs: Division = tuple(
            (layer.name, "inputs")
            for layer in graph.layers
            if multiplies(layer) and can_divide(graph, layer, "inputs")
        )
        for division in (outputs, inputs):
            names = {name for name, _ in division}
            parts, needs = divided(graph, self._needs, division)
            for layer in distinct_layers(parts):
                if layer.divided in ("outputs", "inputs") and (
                    layer.name.removesuffix(PART) in names
                ):
                    yield Subject(parts, needs, layer, dense_shares(layer))

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


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
