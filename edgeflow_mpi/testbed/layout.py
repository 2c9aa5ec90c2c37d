"""From a cluster file to hosts, addresses and rates: pure functions.

A cable has a rate in each direction, and a cluster file a bandwidth for each pair of devices.
Where every pair's bandwidth is the smaller of what its sender's and its receiver's cable
carry, rates of cables are enough; else the sender's traffic needs a class for each receiver.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeflow_mpi.cluster.cluster_file import ClusterSpec
from edgeflow_mpi.errors import ClusterError

NATURAL_LATENCY_S = 50e-6
"""A message of a few bytes between two hosts that nothing delays takes about so long."""

MOST_HOSTS = 250

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_SAME = 1e-6


@dataclass(frozen=True)
class Features:
    """What there is of what a testbed may need, by the names that ``tc`` gives it.

    ``natural_latency_s`` is what a message of a few bytes takes where nothing delays it.
    """

    tbf: bool
    htb: bool
    netem: bool
    natural_latency_s: float = NATURAL_LATENCY_S


@dataclass(frozen=True)
class Host:
    """One device of the cluster as a host.

    ``port`` is its cable's end at the bridge. ``send_mbps`` and ``receive_mbps`` are what the
    cable carries in each direction, in payload; None where nothing limits it.
    """

    name: str
    address: str
    port: str
    send_mbps: float | None
    receive_mbps: float | None


@dataclass(frozen=True)
class Lane:
    """What one host's traffic to another may use beyond the limits of their cables.

    ``bandwidth_mbps`` is None where the cables' rates are all there is; ``delay_ms`` is what is
    added to the natural latency.
    """

    bandwidth_mbps: float | None
    delay_ms: float


@dataclass(frozen=True)
class Layout:
    """Hosts in rank order, and lanes where some are needed: ``(sender, receiver)`` -> lane.

    ``medium_mbps`` is the rate of the one medium that all hosts share; None for a switch.
    """

    hosts: tuple[Host, ...]
    lanes: Mapping[tuple[int, int], Lane]
    medium_mbps: float | None = None


def lay_out(spec: ClusterSpec, features: Features, *, ignore_latency: bool = False) -> Layout:
    """How the cluster can be had on a kernel with these features.

    Parameters
    ----------
    spec : the cluster.
    features : what the kernel has.
    ignore_latency : whether latencies beyond the natural one may be left out.

    Raises
    ------
    ClusterError
        Naming the device or the pair, and the feature that the kernel lacks for it.
    """
    _check_names(spec)
    if not features.tbf and spec.links:
        raise ClusterError(
            "this kernel has no token bucket filter (tbf, CONFIG_NET_SCH_TBF), which limits the "
            "rates of links: a testbed cannot be had on it"
        )
    delays_ms = _delays_ms(spec, features, ignore_latency)
    if spec.network == "shared" and spec.links:
        rate = _mbps(next(iter(spec.links.values())).bandwidth_bytes_s)
        hosts = tuple(_host(i, device.name, rate, None) for i, device in enumerate(spec.devices))
        lanes = {pair: Lane(None, delay) for pair, delay in delays_ms.items() if delay}
        return Layout(hosts, lanes, rate)
    rates = {pair: _mbps(link.bandwidth_bytes_s) for pair, link in spec.links.items()}
    ranks = range(len(spec.devices))
    send = [max((rates[i, j] for j in ranks if j != i), default=None) for i in ranks]
    receive = [max((rates[j, i] for j in ranks if j != i), default=None) for i in ranks]
    lanes = {}
    for (i, j), rate in rates.items():
        carried = min(send[i] or rate, receive[j] or rate)
        own = rate if carried > rate * (1 + _SAME) else None
        if own is not None and not features.htb:
            raise ClusterError(
                f"the link from {spec.names[i]} to {spec.names[j]} has a rate of its own "
                f"({rate:g} Mbit/s, where their cables carry {carried:g}), for which this kernel "
                "lacks classes (htb, CONFIG_NET_SCH_HTB): give all links of a device one "
                "bandwidth, or use a kernel that has them"
            )
        if own is not None or delays_ms[i, j]:
            lanes[i, j] = Lane(own, delays_ms[i, j])
    hosts = tuple(
        _host(i, device.name, send[i], receive[i]) for i, device in enumerate(spec.devices)
    )
    return Layout(hosts, lanes)


def _check_names(spec: ClusterSpec) -> None:
    if len(spec.devices) > MOST_HOSTS:
        raise ClusterError(
            f"the cluster has {len(spec.devices)} devices, a testbed at most {MOST_HOSTS}"
        )
    for name in spec.names:
        if not _HOST_NAME.fullmatch(name):
            raise ClusterError(
                f"the device {name!r} cannot be a host: a host name is made of at most 63 "
                "letters, digits and hyphens"
            )


def _delays_ms(
    spec: ClusterSpec, features: Features, ignore_latency: bool
) -> dict[tuple[int, int], float]:
    """What must be added to the natural latency, pair by pair."""
    natural_ms = features.natural_latency_s * 1e3
    added = {pair: max(link.latency_s * 1e3 - natural_ms, 0.0) for pair, link in spec.links.items()}
    if features.netem:
        return added
    for (i, j), delay_ms in added.items():
        if delay_ms and not ignore_latency:
            raise ClusterError(
                f"the link from {spec.names[i]} to {spec.names[j]} has a latency of "
                f"{spec.links[i, j].latency_s * 1e3:g} ms, but this kernel cannot delay packets "
                "(netem, CONFIG_NET_SCH_NETEM): with --ignore-latency links have their natural "
                f"one, about {natural_ms:g} ms"
            )
    return dict.fromkeys(added, 0.0)


def _host(rank: int, name: str, send_mbps: float | None, receive_mbps: float | None) -> Host:
    return Host(name, f"10.77.0.{rank + 2}", f"port{rank}", send_mbps, receive_mbps)


def _mbps(bandwidth_bytes_s: float) -> float:
    return bandwidth_bytes_s * 8e-6
