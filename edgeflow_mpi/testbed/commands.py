"""From a layout to what ``ip`` and ``tc`` are told: pure functions.

Rates. A token bucket counts whole Ethernet frames, a cluster file what arrives of a message, so
the bucket's rate is larger by what headers take of a full frame. What a bucket holds when a link
has been idle would pass at full speed, so it is small, and a second bucket (``peakrate``) of one
packet lets it out at no more than 1.2 times the rate. The rest of the bucket makes up for timers
that the kernel serves late. A packet is as long as the link takes 100 us for, which is one frame
up to 120 Mbit/s: every packet costs a timer at both ends of a cable, and at higher rates a
machine could not serve one for each frame.

Queues hold more than the windows of all connections together, so that nothing is ever dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeflow_mpi.testbed.layout import Host, Lane, Layout

FRAME_BYTES = 1514
PAYLOAD_BYTES = 1448
"""Of a frame: without the headers of Ethernet (14), IP (20) and TCP (20 and 12 of timestamps)."""

CABLE = "eth0"
_BRIDGE, _UPLINK, _AIR = "bridge0", "uplink", "air0"
_PACKET_S = 100e-6
_MOST_FRAMES = 43  # what a packet holds at most: 64 kB
_BURST_PACKETS = 3
_PEAK = 1.2
_QUEUE_BYTES = 32 << 20
_QUEUE_PACKETS = 20_000
_FREE_MBPS = 100_000.0
_MARGIN_BYTES = 86  # a bucket must be a little larger than the packet


@dataclass(frozen=True)
class Batch:
    """Lines for one call of ``tool -batch -``, in ``namespace`` or, where None, outside."""

    tool: Literal["ip", "tc"]
    namespace: str | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """Of the namespaces of the testbed ``bed``; all begin with :attr:`prefix`."""

    bed: str

    @property
    def prefix(self) -> str:
        return f"{self.bed}-"

    @property
    def switch(self) -> str:
        return f"{self.bed}_switch"

    @property
    def medium(self) -> str:
        return f"{self.bed}_medium"

    def host(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def owns(self, namespace: str) -> bool:
        """Whether a testbed of this name may have made the namespace."""
        return namespace in (self.switch, self.medium) or namespace.startswith(self.prefix)


def bring_up(layout: Layout, names: Names) -> list[Batch]:
    """Everything that makes the layout's namespaces and links, in order."""
    spaces = [names.switch, *(names.host(host.name) for host in layout.hosts)]
    if layout.medium_mbps is not None:
        spaces.append(names.medium)
    batches = [Batch("ip", None, tuple(f"netns add {space}" for space in spaces))]
    cables = [
        f"link add name {CABLE} netns {names.host(host.name)} {_packets(host.send_mbps)}"
        f" type veth peer name {host.port} netns {names.switch} {_packets(host.receive_mbps)}"
        for host in layout.hosts
    ]
    batches.append(Batch("ip", None, tuple(cables)))
    batches += _switch(layout, names)
    for rank, host in enumerate(layout.hosts):
        lines = (
            "link set lo up",
            f"addr add {host.address}/24 dev {CABLE}",
            f"link set {CABLE} addrgenmode none up",
        )
        batches.append(Batch("ip", names.host(host.name), lines))
        batches.append(Batch("tc", names.host(host.name), tuple(_egress(layout, rank))))
    return batches


def _switch(layout: Layout, names: Names) -> list[Batch]:
    """The bridge that joins the cables, and what stands for the air if they share one medium."""
    shared = layout.medium_mbps is not None
    # Isolated ports see only the uplink, so that all frames go through what is behind it.
    isolated = " isolated on" if shared else ""
    lines = [f"link add name {_BRIDGE} type bridge", f"link set {_BRIDGE} up"]
    for host in layout.hosts:
        lines += [
            f"link set {host.port} master {_BRIDGE} up",
            f"link set {host.port} type bridge_slave hairpin off{isolated}",
        ]
    if not shared:
        limits = [_tbf(h.port, h.receive_mbps) for h in layout.hosts if h.receive_mbps is not None]
        return [
            Batch("ip", names.switch, tuple(lines)),
            Batch("tc", names.switch, tuple(limits)),
        ]
    assert layout.medium_mbps is not None
    length = _packets(layout.medium_mbps)
    lines += [
        f"link add {_UPLINK} {length} type veth peer name {_AIR} netns {names.medium} {length}",
        f"link set {_UPLINK} master {_BRIDGE} up",
    ]
    air = (f"addr add 10.77.0.1/24 dev {_AIR}", f"link set {_AIR} up")
    return [
        Batch("ip", names.switch, tuple(lines)),
        Batch("ip", names.medium, air),
        Batch("tc", names.medium, (_tbf(_AIR, layout.medium_mbps),)),
    ]


def medium_settings() -> Sequence[tuple[str, str]]:
    """Kernel settings (below ``/proc/sys``) of the medium's namespace: it hands frames on.

    It answers for every address (``proxy_arp_pvlan``), so that hosts need no routes, and does
    not tell hosts to talk to each other directly.
    """
    each = f"net/ipv4/conf/{_AIR}"
    return (
        ("net/ipv4/ip_forward", "1"),
        (f"{each}/proxy_arp_pvlan", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        (f"{each}/send_redirects", "0"),
    )


def _egress(layout: Layout, rank: int) -> Iterable[str]:
    """What limits and delays what a host sends."""
    host = layout.hosts[rank]
    lanes = {receiver: lane for (sender, receiver), lane in layout.lanes.items() if sender == rank}
    if not lanes:
        if host.send_mbps is not None:
            yield _tbf(CABLE, host.send_mbps)
        return
    kinds = sorted(set(lanes.values()), key=_order)
    if len(kinds) == 1 and len(lanes) == len(layout.hosts) - 1 and kinds[0].bandwidth_mbps is None:
        # One delay for everybody: packets are delayed first, and leave at the cable's rate.
        yield f"qdisc add dev {CABLE} root handle 1: {_netem(kinds[0])}"
        if host.send_mbps is not None:
            yield _tbf(CABLE, host.send_mbps, "parent 1:1 handle 2:")
        return
    yield from _classes(layout, host, lanes, kinds)


def _classes(
    layout: Layout, host: Host, lanes: dict[int, Lane], kinds: Sequence[Lane]
) -> Iterable[str]:
    """A class for every kind of lane, and one for the hosts that have none.

    Together they get no more than the cable carries: classes borrow from it, and what is
    theirs without borrowing is next to nothing.
    """
    cable = host.send_mbps or _FREE_MBPS
    yield f"qdisc add dev {CABLE} root handle 1: htb default 2"
    yield f"class add dev {CABLE} parent 1: classid 1:1 htb {_htb(cable, cable)}"
    yield f"class add dev {CABLE} parent 1:1 classid 1:2 htb {_htb(cable / 1000, cable)}"
    yield f"qdisc add dev {CABLE} parent 1:2 handle 2: pfifo limit {_QUEUE_PACKETS}"
    for number, lane in enumerate(kinds, 3):
        rate = lane.bandwidth_mbps or cable
        yield (
            f"class add dev {CABLE} parent 1:1 classid 1:{number:x} htb {_htb(rate / 1000, rate)}"
        )
        leaf = _netem(lane) if lane.delay_ms else f"pfifo limit {_QUEUE_PACKETS}"
        yield f"qdisc add dev {CABLE} parent 1:{number:x} handle {number:x}: {leaf}"
        for receiver, other in lanes.items():
            if other == lane:
                address = layout.hosts[receiver].address
                yield (
                    f"filter add dev {CABLE} parent 1: protocol ip prio 1 u32"
                    f" match ip dst {address}/32 flowid 1:{number:x}"
                )


def _order(lane: Lane) -> tuple[float, float]:
    return (lane.bandwidth_mbps or 0.0, lane.delay_ms)


def _tbf(device: str, rate_mbps: float, place: str = "root") -> str:
    bits_s = wire_bits_s(rate_mbps)
    return (
        f"qdisc add dev {device} {place} tbf rate {bits_s}bit burst {burst_bytes(rate_mbps)}"
        f" peakrate {round(_PEAK * bits_s)}bit mtu {packet_bytes(rate_mbps) + _MARGIN_BYTES}"
        f" limit {_QUEUE_BYTES}"
    )


def _htb(rate_mbps: float, ceil_mbps: float) -> str:
    packet = packet_bytes(ceil_mbps) + _MARGIN_BYTES
    return (
        f"rate {wire_bits_s(rate_mbps)}bit ceil {wire_bits_s(ceil_mbps)}bit"
        f" burst {packet} cburst {packet} quantum {packet}"
    )


def _netem(lane: Lane) -> str:
    return f"netem delay {round(lane.delay_ms * 1e3)}us limit {_QUEUE_PACKETS}"


def _packets(rate_mbps: float | None) -> str:
    """Of a cable's end: how long the packets are that it takes."""
    frames = packet_bytes(rate_mbps or _FREE_MBPS) // FRAME_BYTES
    return f"mtu 1500 gso_max_segs {frames}"


def packet_bytes(rate_mbps: float) -> int:
    """What leaves at once: as many frames as take 100 us, at least one."""
    frames = wire_bits_s(rate_mbps) / 8 * _PACKET_S / FRAME_BYTES
    return FRAME_BYTES * min(max(round(frames), 1), _MOST_FRAMES)


def burst_bytes(rate_mbps: float) -> int:
    """What a link that was idle carries faster than its rate."""
    return _BURST_PACKETS * packet_bytes(rate_mbps)


def wire_bits_s(rate_mbps: float) -> int:
    """What must pass a cable so that so much payload arrives."""
    return round(rate_mbps * 1e6 * FRAME_BYTES / PAYLOAD_BYTES)
