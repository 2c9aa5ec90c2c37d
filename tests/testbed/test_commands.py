"""What ``ip`` and ``tc`` are told."""

from __future__ import annotations

import re

import pytest

from edgeflow_mpi.testbed.commands import (
    FRAME_BYTES,
    PAYLOAD_BYTES,
    Batch,
    Names,
    bring_up,
    burst_bytes,
    packet_bytes,
)
from edgeflow_mpi.testbed.layout import Host, Lane, Layout

NAMES = Names("bed")


def layout(
    lanes: dict[tuple[int, int], Lane] | None = None, medium_mbps: float | None = None
) -> Layout:
    hosts = tuple(
        Host(name, f"10.77.0.{i + 2}", f"port{i}", 100.0, None if medium_mbps else 50.0)
        for i, name in enumerate("abc")
    )
    return Layout(hosts, lanes or {}, medium_mbps)


def lines(batches: list[Batch], tool: str, namespace: str | None) -> list[str]:
    return [
        line
        for batch in batches
        if (batch.tool, batch.namespace) == (tool, namespace)
        for line in batch.lines
    ]


def test_everything_but_the_names_is_made_inside_namespaces() -> None:
    outside = lines(bring_up(layout(), NAMES), "ip", None)
    spaces = [line.split()[-1] for line in outside if line.startswith("netns add")]
    assert spaces == ["bed_switch", "bed-a", "bed-b", "bed-c"]
    assert all(NAMES.owns(space) for space in spaces)
    assert not NAMES.owns("bed2-a") and not NAMES.owns("other")
    for line in outside[len(spaces) :]:
        assert re.fullmatch(
            r"link add name eth0 netns bed-[abc] mtu 1500 gso_max_segs 1 "
            r"type veth peer name port\d netns bed_switch mtu 1500 gso_max_segs 1",
            line,
        )


def test_both_ends_of_a_cable_are_limited_to_the_payload_that_is_stated() -> None:
    batches = bring_up(layout(), NAMES)
    (sending,) = lines(batches, "tc", "bed-b")
    receiving = lines(batches, "tc", "bed_switch")
    assert len(receiving) == 3
    for line, device, rate_mbps in ((sending, "eth0", 100), (receiving[1], "port1", 50)):
        found = re.match(rf"qdisc add dev {device} root tbf rate (\d+)bit ", line)
        assert found is not None
        payload = int(found[1]) * PAYLOAD_BYTES / FRAME_BYTES
        assert payload == pytest.approx(rate_mbps * 1e6, rel=1e-6)


@pytest.mark.parametrize(
    ("rate_mbps", "frames"), [(1, 1), (93.7, 1), (940, 8), (100_000, 43)], ids=str
)
def test_packets_grow_with_the_rate(rate_mbps: float, frames: int) -> None:
    assert packet_bytes(rate_mbps) == frames * FRAME_BYTES
    assert burst_bytes(rate_mbps) == 3 * frames * FRAME_BYTES


def test_lanes_become_classes_that_borrow_from_the_cable() -> None:
    slow, late = Lane(10.0, 0.0), Lane(None, 5.0)
    told = lines(bring_up(layout({(0, 1): slow, (0, 2): late}), NAMES), "tc", "bed-a")
    assert told[0] == "qdisc add dev eth0 root handle 1: htb default 2"
    ceilings = [int(found[1]) for line in told if (found := re.search(r"ceil (\d+)bit", line))]
    wire = FRAME_BYTES / PAYLOAD_BYTES * 1e6
    assert ceilings == pytest.approx([100 * wire, 100 * wire, 100 * wire, 10 * wire], rel=1e-6)
    filters = {line.split("dst ")[1] for line in told if line.startswith("filter")}
    assert filters == {"10.77.0.3/32 flowid 1:4", "10.77.0.4/32 flowid 1:3"}
    assert [line for line in told if "netem delay 5000us" in line and "parent 1:3" in line]


def test_one_delay_for_everybody_needs_no_classes() -> None:
    late = Lane(None, 2.0)
    told = lines(bring_up(layout({(0, 1): late, (0, 2): late}), NAMES), "tc", "bed-a")
    assert len(told) == 2
    assert told[0].startswith("qdisc add dev eth0 root handle 1: netem delay 2000us")
    assert told[1].startswith("qdisc add dev eth0 parent 1:1 handle 2: tbf")


def test_a_shared_medium_is_one_queue_that_every_frame_passes() -> None:
    batches = bring_up(layout(medium_mbps=25.0), NAMES)
    (air,) = lines(batches, "tc", "bed_medium")
    assert "dev air0 root tbf" in air
    switch = lines(batches, "ip", "bed_switch")
    assert sum("isolated on" in line for line in switch) == 3
    assert lines(batches, "tc", "bed_switch") == []
