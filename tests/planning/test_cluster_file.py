"""Cluster files: what they mean, and one sentence for every way to get them wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_cases import GRAPH

from edgeflow_mpi.cluster.cluster_file import (
    NO_LIMIT_BYTES,
    ClusterSpec,
    cluster_profile,
    load_cluster,
    parse_cluster,
    ranks_of,
)
from edgeflow_mpi.cluster.profile_yaml import parse_profile, profile_text
from edgeflow_mpi.errors import ProfileError

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "clusters").glob("*.yaml"))

TEXT = """\
devices:
  - {name: pi4-a, gflops: 20, memory_mb: 4096, overhead_us: 50}
  - {name: pi3-b, gflops: 5, memory_mb: 1024}
  - {name: pi3-c, gflops: 5, message_us: 30}
links:
  default: {bandwidth_mbps: 93.7, latency_ms: 0.2}
  pairs:
    - {between: [pi4-a, pi3-b], bandwidth_mbps: 940, latency_ms: 0.1}
    - {from: pi3-c, to: pi4-a, bandwidth_mbps: 10, latency_ms: 5}
network: switched
"""


def test_a_file_says_what_its_keys_mean() -> None:
    spec = parse_cluster(TEXT, "home.yaml")
    assert (spec.name, spec.network, spec.excluded) == ("home", "switched", frozenset())
    first, second, third = spec.devices
    assert (first.name, first.flops, first.memory_bytes) == ("pi4-a", 20e9, 4_096_000_000)
    assert (first.overhead_s, first.message_cpu_s) == (50e-6, 0.0)
    assert (second.overhead_s, second.memory_bytes) == (0.0, 1_024_000_000)
    assert (third.message_cpu_s, third.memory_bytes) == (30e-6, NO_LIMIT_BYTES)
    fast, slow, default = spec.links[0, 1], spec.links[2, 0], spec.links[0, 2]
    assert spec.links[1, 0] == fast
    assert (fast.bandwidth_bytes_s, fast.latency_s) == (pytest.approx(117.5e6), 1e-4)
    assert (slow.bandwidth_bytes_s, slow.latency_s) == (pytest.approx(1.25e6), 5e-3)
    assert default.bandwidth_bytes_s == pytest.approx(93.7e6 / 8)
    assert sorted(spec.links) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_costs_follow_from_speed_overhead_and_multiply_adds() -> None:
    profile = cluster_profile(parse_cluster(TEXT, "home"), GRAPH)
    assert (profile.model, profile.fingerprint) == (GRAPH.name, GRAPH.fingerprint)
    assert profile.message_cpu_s == (0.0, 0.0, 30e-6)
    for layer in GRAPH.layers:
        if layer.kind != "compute":
            assert GRAPH.signatures[layer.name] not in profile.costs[0]
            continue
        signature = GRAPH.signatures[layer.name]
        whole = profile.costs[0][signature].seconds(layer.rows)
        assert whole == pytest.approx(50e-6 + 2 * layer.macs / 20e9, rel=1e-12)
        half = profile.costs[1][signature].seconds(1)
        assert half == pytest.approx(2 * layer.macs / 5e9 / layer.rows, rel=1e-12)


def test_what_a_cluster_file_describes_can_be_saved_as_a_profile() -> None:
    profile = cluster_profile(parse_cluster(TEXT, "home"), GRAPH)
    read = parse_profile(profile_text(profile, GRAPH), "p", graph=GRAPH)
    assert [device.name for device in read.devices] == ["pi4-a", "pi3-b", "pi3-c"]
    signature = GRAPH.signatures[GRAPH.layers[1].name]
    assert read.costs[1][signature].per_row_s == pytest.approx(
        profile.costs[1][signature].per_row_s, rel=1e-5
    )


def test_one_device_needs_no_links() -> None:
    spec = parse_cluster("devices: [{name: alone, gflops: 1}]", "one.yaml")
    assert (spec.names, spec.links) == (("alone",), {})


def test_a_count_makes_as_many_devices() -> None:
    spec = parse_cluster(
        "devices: [{name: pi, gflops: 5, count: 3}, {name: desk, gflops: 50}]\n"
        "links: {default: {bandwidth_mbps: 100, latency_ms: 0}}\n"
        "network: shared\nexclude: [pi-3]",
        "c",
    )
    assert spec.names == ("pi-1", "pi-2", "pi-3", "desk")
    assert (spec.network, spec.excluded) == ("shared", {2})


REFUSED = {
    "typo": ("gflops: 20", "gflop: 20", ("line 2: devices[0] has the unknown key 'gflop' "
             "(did you mean 'gflops'?), it may have name, gflops, memory_mb")),
    "missing": ("gflops: 20, ", "", ("line 2: devices[0] lacks the key 'gflops', it must have "
                "name, gflops, and may have memory_mb")),
    "zero-speed": ("gflops: 5", "gflops: 0", ("line 3: devices[1].gflops is 0, it must be a finite "
                   "number above 0")),
    "negative": ("overhead_us: 50", "overhead_us: -50", "devices[0].overhead_us is -50"),
    "infinite": ("gflops: 20", "gflops: .inf", "devices[0].gflops is inf"),
    "nan": ("latency_ms: 0.2", "latency_ms: .nan", "line 6: links.default.latency_ms is nan"),
    "zero-rate": ("bandwidth_mbps: 93.7", "bandwidth_mbps: 0", "bandwidth_mbps is 0"),
    "unit": ("gflops: 20", "gflops: 20000000000", "it must be from 1e-06 to 1e+06"),
    "text": ("gflops: 20", "gflops: 20 GFLOP/s", "devices[0].gflops is '20 GFLOP/s'"),
    "no-memory": ("memory_mb: 4096", "memory_mb: 0", "devices[0].memory_mb is 0"),
    "twice": ("name: pi3-b", "name: pi4-a", "line 3: devices[1].name is 'pi4-a' for a second time"),
    "number-name": ("name: pi3-b", "name: 3", "devices[1].name is 3, it must be a text in quotes"),
    "stranger": ("[pi4-a, pi3-b]", "[pi4-a, pi3b]", ("line 8: links.pairs[0].between[1] is 'pi3b' "
                 "(did you mean 'pi3-b'?), it must be one of pi4-a, pi3-b, pi3-c")),
    "itself": ("[pi4-a, pi3-b]", "[pi4-a, pi4-a]", "links.pairs[0] links pi4-a with itself"),
    "three": ("[pi4-a, pi3-b]", "[pi4-a, pi3-b, pi3-c]", "it must be a pair of devices"),
    "pair-twice": ("from: pi3-c, to: pi4-a", "from: pi3-b, to: pi4-a", ("line 9: links.pairs[1] "
                   "gives the link from pi3-b to pi4-a for a second time")),
    "no-to": ("from: pi3-c, to: pi4-a", "from: pi3-c", "links.pairs[1] lacks the key 'to'"),
    "no-rate": ("bandwidth_mbps: 940, ", "", "links.pairs[0] lacks the key 'bandwidth_mbps'"),
    "no-default": ("  default: {bandwidth_mbps: 93.7, latency_ms: 0.2}\n", "",
                   "links says nothing about the link from pi4-a to pi3-c"),
    "network": ("network: switched", "network: wireless", ("network is 'wireless', it must be one "
                "of switched, shared")),
    "network-typo": ("network: switched", "network: swiched", "(did you mean 'switched'?)"),
    "shared-pairs": ("network: switched", "network: shared", "line 6: links has pairs that differ"),
    "top-typo": ("network: switched", "netwrk: switched", ("line 10: the content has the unknown "
                 "key 'netwrk' (did you mean 'network'?), it may have devices, links")),
    "exclude": ("network: switched", "exclude: [pi3-d]", ("exclude in the cluster file home.yaml "
                "names 'pi3-d' (did you mean")),
    "exclude-first": ("network: switched", "exclude: [pi4-a]", "holds the input"),
    "repeated-key": ("gflops: 20", "gflops: 20, gflops: 5", "the key 'gflops' is given twice"),
    "no-devices": (TEXT[: TEXT.index("links")], "devices: []\n", "devices is empty"),
    "devices-kind": (TEXT[: TEXT.index("links")], "devices: 3\n", "it must be a list of devices"),
    "no-device-key": (TEXT[: TEXT.index("links")], "", "lacks the key 'devices'"),
    "no-links": (TEXT[TEXT.index("links") :], "", "lacks the key 'links'"),
    "count": ("gflops: 5, message_us: 30", "gflops: 5, count: 0", "devices[2].count is 0"),
    "many": ("gflops: 5, message_us: 30", "gflops: 5, count: 100000000", "more than 4096"),
    "tab": ("devices:\n", "devices:\n\t", "is not valid YAML (line 2"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "complaint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_one_sentence_with_file_and_key(
    old: str, new: str, complaint: str
) -> None:
    assert old in TEXT
    with pytest.raises(ProfileError) as caught:
        parse_cluster(TEXT.replace(old, new, 1), "home.yaml")
    sentence = str(caught.value)
    assert "the cluster file home.yaml" in sentence and "\n" not in sentence
    assert complaint in sentence


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"there is no cluster file .*none.yaml"):
        load_cluster(tmp_path / "none.yaml")


def test_excluding_names_is_checked() -> None:
    known = ("a", "b", "c")
    assert ranks_of(["c", "b"], known, "--exclude") == {1, 2}
    with pytest.raises(ProfileError, match="--exclude names 'd', but the devices are a, b, c"):
        ranks_of(["d"], known, "--exclude")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_cluster_with_an_explanation(path: Path) -> None:
    spec = load_cluster(path)
    profile = cluster_profile(spec, GRAPH)
    n = len(spec.devices)
    assert (len(profile.costs), len(profile.links)) == (n, n * (n - 1))
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_examples_cover_the_range() -> None:
    specs = [load_cluster(path) for path in EXAMPLES]
    assert len(specs) >= 12
    sizes = {len(spec.devices) for spec in specs}
    assert min(sizes) == 2 and max(sizes) == 64
    rates = {round(link.bandwidth_bytes_s * 8e-6) for spec in specs for link in spec.links.values()}
    assert min(rates) <= 25 and max(rates) >= 9000
    assert {spec.network for spec in specs} == {"switched", "shared"}
    alike = {len({device.flops for device in spec.devices}) == 1 for spec in specs}
    assert alike == {True, False}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


CONTENT = yaml.safe_load(TEXT)
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["pi4-a", "pi3-b", 1e308, 1e-320, 10**400]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(_places(CONTENT)[1:]), JUNK, st.booleans())
def test_any_single_fault_is_read_or_refused_in_one_sentence(
    place: tuple[Any, ...], junk: object, remove: bool
) -> None:
    content = copy.deepcopy(CONTENT)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    if remove:
        del holder[place[-1]]
    else:
        holder[place[-1]] = junk
    read: ClusterSpec | str
    try:
        read = parse_cluster(yaml.safe_dump(content, allow_unicode=True), "home.yaml")
    except ProfileError as error:
        read = str(error)
    if isinstance(read, str):
        assert "home.yaml" in read and "\n" not in read
    else:
        n = len(read.devices)
        assert n >= 2 and len(read.links) == n * (n - 1)
        assert all(device.flops > 0 and device.memory_bytes > 0 for device in read.devices)
        assert all(0 < link.bandwidth_bytes_s < float("inf") for link in read.links.values())
