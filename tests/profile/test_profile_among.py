"""Costs of ranks that share cores, when a plan uses only some of them."""

from __future__ import annotations

import pytest

from edgeflow_mpi.cluster.profile import Device, LayerCost, Profile


def profile(hosts: str, *stretches: float) -> Profile:
    """One device for each letter of ``hosts``; every layer costs 10 s and 1 s a row."""
    devices = tuple(Device(f"{host}/{i}", 1, 1, host=host) for i, host in enumerate(hosts))
    costs = tuple({"s": LayerCost(10.0, 1.0, ((2, 12.0),))} for _ in hosts)
    return Profile("m", "f", devices, costs, {}, stretches)


def seconds(found: Profile) -> list[float]:
    return [cost["s"].seconds(2) for cost in found.costs]


@pytest.mark.parametrize(
    ("hosts", "stretches", "active", "expected"),
    [
        ("aaaa", (2.0, 2.0, 2.0, 2.0), [0, 1, 2, 3], [12, 12, 12, 12]),
        ("aaaa", (2.0, 2.0, 2.0, 2.0), [1, 2, 3], [12, 9, 9, 9]),
        ("aaaa", (2.0, 2.0, 2.0, 2.0), [0, 1], [6, 6, 12, 12]),
        ("aaaa", (2.0, 2.0, 2.0, 2.0), [3], [12, 12, 12, 6]),
        ("aab", (2.0, 2.0, 1.0), [0, 2], [6, 12, 12]),
        ("ab", (3.0, 1.0), [0], [12, 12]),
        ("aa", (), [0], [12, 12]),
        ("aa", (1.0, 1.0), [0], [12, 12]),
    ],
    ids=["all", "three", "two", "one", "two-hosts", "busy-host", "unknown", "own-cores"],
)
def test_fewer_active_ranks_are_as_much_faster_as_their_cores_allow(
    hosts: str, stretches: tuple[float, ...], active: list[int], expected: list[float]
) -> None:
    assert seconds(profile(hosts, *stretches).among(active)) == pytest.approx(expected)


def test_points_and_stretch_follow() -> None:
    once = profile("aaaa", 2.0, 2.0, 2.0, 2.0).among([0, 1])
    assert once.costs[0]["s"] == LayerCost(5.0, 0.5, ((2, 6.0),))
    assert once.stretches == (1.0, 1.0, 2.0, 2.0)
