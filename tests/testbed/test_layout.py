"""From cluster files to rates and lanes, on kernels with and without what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeflow_mpi.cluster.cluster_file import load_cluster, parse_cluster
from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.testbed.layout import Features, Lane, lay_out

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "clusters").glob("*.yaml"))
ALL = Features(tbf=True, htb=True, netem=True)
NO_DELAY = Features(tbf=True, htb=True, netem=False)
ONLY_RATES = Features(tbf=True, htb=False, netem=False)

TWO_SPEEDS = """\
devices:
  - {name: a, gflops: 5}
  - {name: b, gflops: 5}
  - {name: c, gflops: 5}
links:
  default: {bandwidth_mbps: 100, latency_ms: 0}
  pairs:
    - {between: [a, b], bandwidth_mbps: 900, latency_ms: 0}
"""


def test_cables_alone_carry_pairs_whose_rate_is_the_smaller_of_two_ends() -> None:
    layout = lay_out(parse_cluster(TWO_SPEEDS, "x"), ONLY_RATES)
    assert [host.send_mbps for host in layout.hosts] == pytest.approx([900, 900, 100])
    assert [host.receive_mbps for host in layout.hosts] == pytest.approx([900, 900, 100])
    assert (layout.lanes, layout.medium_mbps) == ({}, None)


def test_a_pair_slower_than_its_cables_has_a_lane() -> None:
    text = TWO_SPEEDS.replace("[a, b]", "[a, c]") + (
        "    - {from: b, to: c, bandwidth_mbps: 900, latency_ms: 0}\n"
    )
    spec = parse_cluster(text, "x")
    layout = lay_out(spec, NO_DELAY)
    # b sends at 900 to c, a receives at 900 from c; nobody else sends to b at more than 100.
    assert layout.lanes == {(1, 0): Lane(pytest.approx(100), 0.0)}
    with pytest.raises(ClusterError, match=r"from b to a has a rate of its own .*htb"):
        lay_out(spec, ONLY_RATES)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_every_pair_gets_exactly_its_rate_and_delay(file: Path) -> None:
    spec = load_cluster(file)
    layout = lay_out(spec, ALL)
    for (i, j), link in spec.links.items():
        lane = layout.lanes.get((i, j), Lane(None, 0.0))
        ends = (layout.hosts[i].send_mbps, layout.hosts[j].receive_mbps)
        limits = [lane.bandwidth_mbps, layout.medium_mbps, *ends]
        carried = min(limit for limit in limits if limit is not None)
        assert carried == pytest.approx(link.bandwidth_bytes_s * 8e-6)
        assert 0 <= link.latency_s * 1e3 - lane.delay_ms <= 0.05 + 1e-9


def test_a_shared_medium_has_one_rate() -> None:
    spec = parse_cluster(TWO_SPEEDS.split("  pairs")[0] + "network: shared\n", "x")
    assert lay_out(spec, ONLY_RATES).medium_mbps == pytest.approx(100)


def test_latency_that_cannot_be_had_is_refused_unless_it_is_ignored() -> None:
    text = TWO_SPEEDS.replace("900, latency_ms: 0", "900, latency_ms: 2.5")
    spec = parse_cluster(text, "x")
    assert lay_out(spec, ALL).lanes == {(0, 1): Lane(None, 2.45), (1, 0): Lane(None, 2.45)}
    with pytest.raises(ClusterError, match=r"from a to b has a latency of 2\.5 ms.*netem"):
        lay_out(spec, NO_DELAY)
    assert lay_out(spec, NO_DELAY, ignore_latency=True).lanes == {}


def test_what_cannot_be_a_host_is_named() -> None:
    spec = parse_cluster("devices: [{name: my camera, gflops: 5}]", "x")
    with pytest.raises(ClusterError, match="'my camera' cannot be a host"):
        lay_out(spec, ALL)
    many = parse_cluster(
        "devices: [{name: a, gflops: 5, count: 251}]\n"
        "links: {default: {bandwidth_mbps: 100, latency_ms: 0}}", "x",
    )  # fmt: skip
    with pytest.raises(ClusterError, match="251 devices"):
        lay_out(many, ALL)


def test_a_kernel_without_rates_is_no_place_for_a_testbed() -> None:
    spec = parse_cluster(TWO_SPEEDS, "x")
    with pytest.raises(ClusterError, match="tbf"):
        lay_out(spec, Features(tbf=False, htb=True, netem=True))
