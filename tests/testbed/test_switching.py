"""What the switch of our own is told, and that it is as fast as the links it stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.testbed import system
from edgeflow_mpi.testbed.commands import Names
from edgeflow_mpi.testbed.layout import Host, Lane, Layout
from edgeflow_mpi.testbed.switching import (
    cables,
    description,
    hardware_address,
    segment_frames,
    spaces_first,
)

NAMES = Names("bed")


def layout(medium_mbps: float | None = None) -> Layout:
    hosts = (
        Host("a", "10.77.0.2", "port0", 100.0, 50.0),
        Host("b", "10.77.0.3", "port1", 10.0, None),
    )
    return Layout(hosts, {(0, 1): Lane(5.0, 0.25), (1, 0): Lane(None, 1.0)}, medium_mbps)


def test_the_switch_is_told_rates_of_what_passes_the_wire() -> None:
    lines = description(layout(), ["/run/netns/x", "/run/netns/y"]).splitlines()
    whole_frames = 1514 / 1448
    assert lines == [
        f"host /run/netns/x eth0 {int(100e6 / 8 * whole_frames)} {int(50e6 / 8 * whole_frames)}",
        f"host /run/netns/y eth0 {int(10e6 / 8 * whole_frames)} 0",
        "medium 0",
        f"lane 0 1 {int(5e6 / 8 * whole_frames)} 250000",
        "lane 1 0 0 1000000",
    ]
    assert "medium 2613950" in description(layout(20.0), ["x", "y"])


def test_hosts_have_the_addresses_by_which_the_switch_knows_them() -> None:
    assert hardware_address(3) == "02:ef:00:00:00:03"
    assert hardware_address(249) == "02:ef:00:00:00:f9"
    batches = cables(layout(), NAMES)
    assert [batch.namespace for batch in batches] == ["bed-a", "bed-b"]
    assert "link set eth0 address 02:ef:00:00:00:01 addrgenmode none mtu 1500" in batches[1].lines
    assert spaces_first(layout(), NAMES).lines == (
        "netns add bed_switch", "netns add bed-a", "netns add bed-b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mbps", "frames"), [(1, 1), (25, 2), (93.7, 8), (1000, 43)], ids=lambda value: f"{value:g}"
)
def test_a_segment_is_a_millisecond_of_the_link(mbps: float, frames: int) -> None:
    assert segment_frames(mbps) == frames


def test_without_a_compiler_there_is_no_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert system.build_switch(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_switch_that_does_not_understand_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_TUN", tmp_path)
    program = system.build_switch(tmp_path)
    assert program is not None and system.build_switch(tmp_path) == program
    monkeypatch.setattr(system, "_entering", lambda namespace: [])
    with pytest.raises(ClusterError, match="did not start: nonsense"):
        system.start_switch(program, "nowhere", "nonsense\n")
