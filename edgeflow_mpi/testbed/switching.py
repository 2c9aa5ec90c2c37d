"""From a layout to a switch of our own (``switch.c``): what it and ``ip`` are told. Pure functions.

The kernel's queues make every frame wait for a timer, at both ends of a cable. Eight hosts that
exchange 50 MB a second keep two cores busy with that alone; and what a token bucket holds passes
at once. The switch of ours reads what hosts send, segments of up to a millisecond that the kernel
has not cut into frames, and hands each over at the very time at which its last bit would arrive.
It needs neither ``tbf`` nor ``htb`` nor ``netem``.

No frame is ever lost, so hosts need not find out what the network can carry: connections begin
with wide windows and keep them, and do not take what stands in a queue for lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeflow_mpi.testbed.commands import (
    CABLE,
    FRAME_BYTES,
    Batch,
    Names,
    wire_bits_s,
)
from edgeflow_mpi.testbed.layout import Layout

NATURAL_LATENCY_S = 200e-6
"""From a send to when a rank takes note of a message, where the switch adds nothing (2 cores of an
AMD EPYC, measured with ``bench.testbed_links``)."""

_SEGMENT_S = 1e-3
_MOST_FRAMES = 43  # 64 kB
_WINDOWS = "initcwnd 400 initrwnd 400 rto_min 5s"
_BUFFER = "4096 4194304 16777216"  # bytes: least, first, most
_QUEUE_FRAMES = 10_000


def spaces_first(layout: Layout, names: Names) -> Batch:
    """The namespaces, which must be there before the switch is."""
    spaces = (names.switch, *(names.host(host.name) for host in layout.hosts))
    return Batch("ip", None, tuple(f"netns add {space}" for space in spaces))


def description(layout: Layout, spaces: Iterable[str]) -> str:
    """What the switch reads; ``spaces`` are the files of the hosts' namespaces."""
    lines = [
        f"host {space} {CABLE} {_bytes_s(host.send_mbps)} {_bytes_s(host.receive_mbps)}"
        for host, space in zip(layout.hosts, spaces, strict=True)
    ]
    lines.append(f"medium {_bytes_s(layout.medium_mbps)}")
    lines += [
        f"lane {sender} {receiver} {_bytes_s(lane.bandwidth_mbps)} {round(lane.delay_ms * 1e6)}"
        for (sender, receiver), lane in layout.lanes.items()
    ]
    return "\n".join(lines) + "\n"


def cables(layout: Layout, names: Names) -> list[Batch]:
    """The hosts' ends of their cables, which the switch has made."""
    return [
        Batch("ip", names.host(host.name), (
            "link set lo up",
            f"link set {CABLE} address {hardware_address(number)} addrgenmode none mtu 1500",
            f"link set {CABLE} txqueuelen {_QUEUE_FRAMES}",
            f"link set {CABLE} gso_max_segs {segment_frames(_rate(host.send_mbps))}",
            f"link set {CABLE} up",
            f"addr add {host.address}/24 dev {CABLE}",
            f"route change 10.77.0.0/24 dev {CABLE} src {host.address} {_WINDOWS}",
        ))
        for number, host in enumerate(layout.hosts)
    ]  # fmt: skip


def host_settings() -> Sequence[tuple[str, str]]:
    """Kernel settings (below ``/proc/sys``) of every host's namespace."""
    return (
        # Others pace what they send, or probe what the network can carry.
        ("net/ipv4/tcp_congestion_control", "reno"),
        ("net/ipv4/tcp_slow_start_after_idle", "0"),
        ("net/ipv4/tcp_early_retrans", "0"),
        ("net/ipv4/tcp_rmem", _BUFFER),
        ("net/ipv4/tcp_wmem", _BUFFER),
    )


def hardware_address(number: int) -> str:
    """Of host ``number``, by which the switch knows it."""
    return f"02:ef:00:00:{number // 256:02x}:{number % 256:02x}"


def segment_frames(rate_mbps: float) -> int:
    """How many frames pass as one: a millisecond of the link, at most what the kernel gives."""
    frames = round(wire_bits_s(rate_mbps) / 8 * _SEGMENT_S / FRAME_BYTES)
    return min(max(frames, 1), _MOST_FRAMES)


def _rate(mbps: float | None) -> float:
    return 100_000.0 if mbps is None else mbps


def _bytes_s(mbps: float | None) -> int:
    return 0 if mbps is None else wire_bits_s(mbps) // 8
