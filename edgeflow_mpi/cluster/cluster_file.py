"""A cluster that a person describes in a YAML file, and what it would measure for a model.

The file (``clusters/`` has examples) gives every device a speed and every link a bandwidth and
a latency::

    devices:                       # the first is rank 0: it holds the input and wants the output
      - {name: pi4-a, gflops: 20, memory_mb: 4096, overhead_us: 50}
      - {name: pi3-b, gflops: 5, memory_mb: 1024}
    links:
      default: {bandwidth_mbps: 93.7, latency_ms: 0.2}
      pairs:
        - {between: [pi4-a, pi3-b], bandwidth_mbps: 940, latency_ms: 0.1}
    network: switched              # or shared: one medium, one rate for all

:func:`load_cluster` reads it, :func:`cluster_profile` turns it into the profile that a
measurement of such a cluster would give, so that planning, emulation and benchmarks are driven
by one file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from edgeflow_mpi.cluster.profile import Device, LayerCost, Link, Profile
from edgeflow_mpi.cluster.yaml_fields import Field, did_you_mean
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.types import Graph, Layer

Network = Literal["switched", "shared"]

NO_LIMIT_BYTES = sys.maxsize
"""The memory of a device whose file gives no ``memory_mb``."""

MOST_DEVICES = 4096
"""More than this is taken for a slip of the pen."""

_OPTIONAL_DEVICE_KEYS = ("memory_mb", "overhead_us", "message_us", "count")
_LINK_KEYS = ("latency_ms", "bandwidth_mbps")
# Beyond these a number was meant in another unit.
_RANGES = {
    "gflops": (1e-6, 1e6),
    "memory_mb": (1e-3, 1e9),
    "overhead_us": (0.0, 1e9),
    "message_us": (0.0, 1e9),
    "latency_ms": (0.0, 1e6),
    "bandwidth_mbps": (1e-6, 1e9),
}


@dataclass(frozen=True)
class ClusterDevice:
    """One device.

    ``flops`` is its sustained float32 speed in floating-point operations a second, two for
    every multiply-add. Every unit (a layer, or a piece of one) takes ``overhead_s`` more, and
    every message keeps the processor of its sender and of its receiver for ``message_cpu_s``.
    """

    name: str
    flops: float
    memory_bytes: int = NO_LIMIT_BYTES
    overhead_s: float = 0.0
    message_cpu_s: float = 0.0


@dataclass(frozen=True)
class ClusterSpec:
    """What a cluster file says.

    ``devices`` are in the order of ranks and have different names. ``links[(i, j)]`` is the
    direction i -> j, present for every i != j; where ``network`` is ``shared`` all have one
    bandwidth and latency. ``excluded`` are ranks that a plan must leave without work.
    """

    name: str
    devices: tuple[ClusterDevice, ...]
    links: Mapping[tuple[int, int], Link]
    network: Network = "switched"
    excluded: frozenset[int] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.devices)


def load_cluster(path: Path) -> ClusterSpec:
    """The cluster described in ``path``; its name is that of the file.

    Raises
    ------
    ProfileError
        With one sentence, when the file is missing, or something in it is missing, unknown or
        impossible.
    """
    return _read(Field.of_file(path, "cluster file"), path.stem)


def parse_cluster(text: str, name: str) -> ClusterSpec:
    """As :func:`load_cluster`, from a text that complaints call ``name``."""
    return _read(Field.of_text(text, f"the cluster file {name}"), Path(name).stem)


def cluster_profile(spec: ClusterSpec, graph: Graph) -> Profile:
    """What a measurement of ``graph`` on the described cluster would find.

    A unit of r of a layer's R rows takes a device ``overhead_s + 2 * macs / flops * r / R``
    seconds, where ``macs`` are the layer's multiply-adds. Layers without any, such as pooling,
    cost the overhead alone.
    """
    layers = [layer for layer in graph.layers if layer.kind == "compute"]
    return Profile(
        model=graph.name,
        fingerprint=graph.fingerprint,
        devices=tuple(Device(d.name, 1, d.memory_bytes, d.name) for d in spec.devices),
        costs=tuple(
            {graph.signatures[layer.name]: _cost(device, layer) for layer in layers}
            for device in spec.devices
        ),
        links=spec.links,
        network=spec.network,
        message_cpu_s=tuple(device.message_cpu_s for device in spec.devices),
    )


def ranks_of(names: Sequence[str], known: Sequence[str], option: str) -> frozenset[int]:
    """Ranks of the devices ``names``, which ``option`` wants to be without work.

    Raises
    ------
    ProfileError
        One of them is not ``known``, or is the first, which holds the input.
    """
    for name in names:
        if name not in known:
            raise ProfileError(
                f"{option} names {name!r}{did_you_mean(name, known)}, but the devices are "
                f"{_listed(known)}"
            )
        if name == known[0]:
            raise ProfileError(
                f"{option} names {name}, which is the first device: it holds the input and wants "
                "the output, so it cannot be left out; put another device first"
            )
    return frozenset(known.index(name) for name in names)


def _cost(device: ClusterDevice, layer: Layer) -> LayerCost:
    return LayerCost(device.overhead_s, 2 * layer.macs / device.flops / max(layer.rows, 1))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 12 else (*names[:12], f"... ({len(names)} in all)"))


def _read(content: Field, name: str) -> ClusterSpec:
    top = content.mapping("devices", optional=("links", "network", "exclude"))
    devices = _read_devices(top["devices"])
    names = [device.name for device in devices]
    network = top["network"].choice(("switched", "shared")) if "network" in top else "switched"
    if len(devices) > 1 and "links" not in top:
        content.fail("lacks the key 'links', which says how the devices are connected")
    links = _read_links(top["links"], names) if "links" in top else {}
    if network == "shared" and len(set(links.values())) > 1:
        top["links"].fail(
            "has pairs that differ, but network is shared, which means one medium with one rate "
            "for all: leave the pairs out, or write network: switched"
        )
    excluded: frozenset[int] = frozenset()
    if "exclude" in top:
        given = [item.text() for item in top["exclude"].items("a list of names of devices")]
        excluded = ranks_of(given, names, f"exclude in {content.file}")
    return ClusterSpec(name, devices, links, cast(Network, network), excluded)


def _read_devices(devices: Field) -> tuple[ClusterDevice, ...]:
    read: dict[str, ClusterDevice] = {}
    for item in devices.items("a list of devices"):
        fields = item.mapping("name", "gflops", optional=_OPTIONAL_DEVICE_KEYS)
        numbers = {key: _within(fields[key], *_RANGES[key]) for key in fields if key in _RANGES}
        name = fields["name"].text()
        device = ClusterDevice(
            name=name,
            flops=numbers["gflops"] * 1e9,
            memory_bytes=(
                round(numbers["memory_mb"] * 1e6) if "memory_mb" in numbers else NO_LIMIT_BYTES
            ),
            overhead_s=numbers.get("overhead_us", 0.0) / 1e6,
            message_cpu_s=numbers.get("message_us", 0.0) / 1e6,
        )
        count = fields["count"].integer(1) if "count" in fields else 0
        if len(read) + count >= MOST_DEVICES:
            item.fail(f"makes more than {MOST_DEVICES} devices, which nothing here can plan for")
        for alike in [f"{name}-{k + 1}" for k in range(count)] or [name]:
            if alike in read:
                fields["name"].fail(
                    f"is {alike!r} for a second time, every device must have a name of its own"
                )
            read[alike] = replace(device, name=alike)
    if not read:
        devices.fail("is empty, it must have at least one device")
    return tuple(read.values())


def _read_links(links: Field, names: Sequence[str]) -> dict[tuple[int, int], Link]:
    fields = links.mapping(optional=("default", "pairs"))
    every = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    read: dict[tuple[int, int], Link] = {}
    pairs = fields["pairs"].items("a list of pairs of devices") if "pairs" in fields else []
    for item in pairs:
        directions, link = _read_pair(item, names)
        for i, j in directions:
            if (i, j) in read:
                item.fail(
                    f"gives the link from {names[i]} to {names[j]} for a second time, every "
                    "direction may be given once"
                )
            read[i, j] = link
    if "default" in fields:
        default = _read_link(fields["default"].mapping(*_LINK_KEYS))
        read = dict.fromkeys(every, default) | read
    for i, j in every:
        if (i, j) not in read:
            links.fail(
                f"says nothing about the link from {names[i]} to {names[j]}: add default: "
                "{bandwidth_mbps: ..., latency_ms: ...}, or the pair"
            )
    return dict(sorted(read.items()))


def _read_pair(item: Field, names: Sequence[str]) -> tuple[list[tuple[int, int]], Link]:
    """The directions and the rates of one entry of ``pairs``."""
    given = item.named("a mapping with the keys between, bandwidth_mbps, latency_ms")
    one_way = "from" in given or "to" in given
    fields = item.mapping(*(("from", "to") if one_way else ("between",)), *_LINK_KEYS)
    ends = (
        [fields["from"], fields["to"]]
        if one_way
        else fields["between"].items("a pair of devices such as [a, b]", length=2)
    )
    i, j = (names.index(end.choice(names)) for end in ends)
    if i == j:
        item.fail(f"links {names[i]} with itself, it must name two devices")
    return [(i, j)] if one_way else [(i, j), (j, i)], _read_link(fields)


def _read_link(fields: Mapping[str, Field]) -> Link:
    latency_ms, bandwidth_mbps = (_within(fields[key], *_RANGES[key]) for key in _LINK_KEYS)
    return Link(latency_ms / 1e3, bandwidth_mbps / 8e-6)


def _within(field: Field, least: float, most: float) -> float:
    value = field.number(positive=least > 0)
    if not least <= value <= most:
        field.fail(f"is {field.value}, it must be from {least:g} to {most:g}")
    return value
