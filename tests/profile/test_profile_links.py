"""Links: the series of messages adapts to the link, and a lost message ends the job."""

from __future__ import annotations

import numpy as np
import pytest
from profile_cases import on_ranks

from edgeflow_mpi.cluster import links
from edgeflow_mpi.cluster.comm import PointToPoint, Request
from edgeflow_mpi.cluster.fit import fit_link
from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.progress import NoProgress


class _Clock:
    """Time that passes only when a message travels."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class _VirtualChannel:
    """A sender's channel over a link that behaves exactly as the cost model says."""

    def __init__(self, clock: _Clock, link: Link) -> None:
        self._clock, self._link = clock, link
        self.sizes: list[int] = []

    def send(self, buffer: np.ndarray, tag: int) -> Request | None:
        self._clock.now_s += self._link.latency_s + buffer.nbytes / self._link.bandwidth_bytes_s
        self.sizes.append(buffer.nbytes)
        return None

    def receive(self, buffer: np.ndarray, tag: int) -> str:
        return "reply"

    def wait(self, request: Request | str | None) -> None:
        if request == "reply":
            self._clock.now_s += self._link.latency_s


@pytest.mark.parametrize(
    ("link", "largest"),
    [
        (Link(2e-6, 8e9), 1048576),
        (Link(2e-4, 12.5e6), 262144),
        (Link(2e-3, 25e6 / 8), 65536),
        (Link(0.5, 1e4), 4096),
    ],
    ids=["memory", "100-mbps", "25-mbps", "very-slow"],
)
def test_sizes_grow_until_the_budget_and_the_link_is_recovered(
    monkeypatch: pytest.MonkeyPatch, link: Link, largest: int
) -> None:
    clock = _Clock()
    monkeypatch.setattr(links, "time", clock)
    channel = _VirtualChannel(clock, link)
    found = fit_link(links._send_all(channel, 0.5))  # type: ignore[arg-type]
    assert max(channel.sizes) == largest
    assert clock.now_s < 1.0 or largest == 4096
    # A byte of payload stands for nothing, hence not exactly.
    assert found.latency_s == pytest.approx(link.latency_s, rel=0.01)
    assert found.bandwidth_bytes_s == pytest.approx(link.bandwidth_bytes_s, rel=0.01)


def test_the_way_back_of_the_acknowledgement_is_taken_off() -> None:
    assert links.one_way({1: [4.0, 2.0, 9.0], 100: [12.0]}) == [(1, 2.0), (100, 10.0)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_ordered_pair_is_measured_and_known_to_all(size: int) -> None:
    def work(comm: PointToPoint) -> dict[tuple[int, int], Link]:
        names = [f"host{i}" for i in range(comm.Get_size())]
        return dict(links.measure_links(comm, names=names, progress=NoProgress(), budget_s=0.01))

    first, *others = on_ranks(size, work)
    assert isinstance(first, dict)
    assert set(first) == {(i, j) for i in range(size) for j in range(size) if i != j}
    assert all(other == first for other in others)
    assert all(link.latency_s >= 0 and link.bandwidth_bytes_s > 0 for link in first.values())


@pytest.mark.parametrize("tag", [0, 1, 2], ids=["header", "payload", "reply"])
def test_a_message_that_never_arrives_is_told_to_all_with_its_pair(tag: int) -> None:
    def work(comm: PointToPoint) -> object:
        names = ["desk", "pi", "phone"]
        return links.measure_links(comm, names=names, progress=NoProgress(), timeout_s=0.2)

    # The way from 2 to 1 is cut: it carries messages 2 -> 1 and replies to messages 1 -> 2.
    for outcome in on_ranks(3, work, loses=lambda i, j, t: (i, j, t) == (2, 1, tag)):
        assert isinstance(outcome, ClusterError)
        assert "rank 1 (pi)" in str(outcome) and "rank 2 (phone)" in str(outcome)
        assert "within 0.2 s" in str(outcome)
