"""Profiles on disk: what is written reads back, what is malformed is refused clearly."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profile_cases import relu_graph

from edgeflow_mpi.cluster.profile import Device, LayerCost, Link, Profile
from edgeflow_mpi.cluster.profile_yaml import (
    load_profile,
    parse_profile,
    profile_text,
    save_profile,
)
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.types import Graph, Origin

Edit = Callable[[Any], object]


GRAPH = relu_graph()
DEVICES = (
    Device("pi", 4, 1_000_000_000, host="pi", cpu="ARMv7 Processor rev 4 (v7l)"),
    Device("desk/0", 2, 8_000_000_000, host="desk", cpu='odd "name": {#1}'),
    Device("desk/1", 2, 8_000_000_000, host="desk", cpu="unknown"),
)


def make_profile() -> Profile:
    signatures = sorted({GRAPH.signatures[name] for name in "abc"})
    costs = tuple(
        {
            signature: LayerCost(
                1e-5 * i,
                1.23456e-6 * (k + 1),
                ((2, 3.5e-6), (8, 1.0625e-5)),
                ("onednn", "aten") if i else (),
            )
            for k, signature in enumerate(signatures)
        }
        for i in range(3)
    )
    links = {(i, j): Link(1e-4 * i, 12.5e6 * (j + 1)) for i in range(3) for j in range(3) if i != j}
    return Profile(
        "tiny",
        GRAPH.fingerprint,
        DEVICES,
        costs,
        links,
        (1.0, 2.5, 1.75),
        "2024-02-03T04:05:06Z",
        (("torch", "2"),),
    )


def test_a_saved_profile_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "p.yaml"
    save_profile(make_profile(), path, graph=GRAPH)
    read, made = load_profile(path, graph=GRAPH, devices=DEVICES), make_profile()
    assert read.devices == made.devices
    assert read.stretches == made.stretches
    assert (read.created, read.versions) == (made.created, made.versions)
    assert (read.model, read.fingerprint) == (made.model, made.fingerprint)
    for (pair, link), (pair_, link_) in zip(read.links.items(), made.links.items(), strict=True):
        assert pair == pair_
        assert link.latency_s == pytest.approx(link_.latency_s, rel=1e-5)
        assert link.bandwidth_bytes_s == pytest.approx(link_.bandwidth_bytes_s, rel=1e-5)
    for mine, theirs in zip(read.costs, made.costs, strict=True):
        assert set(mine) == set(theirs)
        for signature, cost in mine.items():
            assert cost.engines == theirs[signature].engines
            assert cost.fixed_s == pytest.approx(theirs[signature].fixed_s, rel=1e-5)
            assert cost.per_row_s == pytest.approx(theirs[signature].per_row_s, rel=1e-5)
            for point, point_ in zip(cost.points, theirs[signature].points, strict=True):
                assert point == pytest.approx(point_, rel=1e-5)


def test_reading_and_writing_again_changes_nothing() -> None:
    text = profile_text(make_profile(), GRAPH)
    read = parse_profile(text, "p", graph=GRAPH, devices=DEVICES)
    assert profile_text(read, GRAPH) == text
    assert parse_profile(profile_text(read, GRAPH), "p", graph=GRAPH, devices=DEVICES) == read


def test_the_text_says_what_a_person_wants_to_know() -> None:
    text = profile_text(make_profile(), GRAPH)
    assert text.startswith("# What tiny costs")
    assert '- layer: "a"  # and 1 more\n' in text
    assert '{from: "pi", to: "desk/0", latency_ms: 0, bandwidth_mbps: 200}' in text


@pytest.mark.parametrize("value", [1e-12, 1e-5, 123456.789, 1e6, 1e15, 2.5e-7, 0.0])
def test_every_magnitude_reads_back_as_a_number(value: float) -> None:
    profile = make_profile()
    links = dict.fromkeys(profile.links, Link(value, 1e12))
    text = profile_text(dataclasses.replace(profile, links=links), GRAPH)
    read = parse_profile(text, "p", graph=GRAPH, devices=DEVICES)
    assert read.links[0, 1].latency_s == pytest.approx(value, rel=1e-5)


def test_devices_are_brought_into_the_order_of_the_job() -> None:
    order = (DEVICES[2], DEVICES[0], DEVICES[1])
    text = profile_text(make_profile(), GRAPH)
    read, made = parse_profile(text, "p", graph=GRAPH, devices=order), make_profile()
    assert read.devices == order
    assert read.stretches == (1.75, 1.0, 2.5)
    assert read.links[1, 2].bandwidth_bytes_s == pytest.approx(
        made.links[0, 1].bandwidth_bytes_s, rel=1e-5
    )
    signature = GRAPH.signatures["a"]
    assert read.costs[0][signature].fixed_s == pytest.approx(made.costs[2][signature].fixed_s)


def test_without_a_job_devices_stay_in_the_order_of_the_file() -> None:
    text = profile_text(make_profile(), GRAPH)
    read = parse_profile(text, "p", graph=GRAPH)
    assert read == parse_profile(text, "p", graph=GRAPH, devices=DEVICES)


def test_complaints_name_the_line_and_what_was_meant() -> None:
    lines = profile_text(make_profile(), GRAPH).splitlines()
    number = next(i for i, line in enumerate(lines) if "latency_ms:" in line and line[0] != "#")
    broken = lines[number].replace("latency_ms", "latencyms")
    complaint = refusal("\n".join([*lines[:number], broken, *lines[number + 1 :]]))
    assert f"p.yaml, line {number + 1}: links[0] has the unknown key 'latencyms'" in complaint
    assert "(did you mean 'latency_ms'?)" in complaint
    broken = lines[number].replace('to: "desk/0"', 'to: "desc/0"')
    complaint = refusal("\n".join([*lines[:number], broken, *lines[number + 1 :]]))
    assert "links[0].to is 'desc/0' (did you mean 'desk/0'?), it must be one of pi" in complaint


def test_a_key_given_twice_is_refused() -> None:
    text = profile_text(make_profile(), GRAPH) + "format: 1\n"
    line = text.count("\n")
    assert f"p.yaml, line {line}: the key 'format' is given twice" in refusal(text)


def test_one_device_has_no_links() -> None:
    made = make_profile()
    alone = dataclasses.replace(
        made, devices=DEVICES[:1], costs=made.costs[:1], links={}, stretches=()
    )
    text = profile_text(alone, GRAPH)
    assert parse_profile(text, "p", graph=GRAPH, devices=DEVICES[:1]).links == {}


def refusal(text: str, graph: Graph = GRAPH, devices: tuple[Device, ...] = DEVICES) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "the profile p.yaml", graph=graph, devices=devices)
    sentence = str(caught.value)
    assert "p.yaml" in sentence and "\n" not in sentence
    return sentence


def edited(edit: Edit) -> str:
    content = yaml.safe_load(profile_text(make_profile(), GRAPH))
    edit(content)
    return yaml.safe_dump(content)


EDITS: dict[str, tuple[Edit, str]] = {
    "format": (lambda c: c.update(format=2), "format is 2, this version reads 1"),
    "unknown": (lambda c: c.update(speed=1), "unknown key 'speed'"),
    "missing": (lambda c: c.pop("links"), "lacks the key 'links'"),
    "no-devices": (lambda c: c.update(devices=[]), "devices is empty"),
    "links-kind": (lambda c: c.update(links=3), "links is 3, it must be a list of links"),
    "negative": (lambda c: c["links"][1].update(latency_ms=-1), "links[1].latency_ms is -1"),
    "infinite": (
        lambda c: c["links"][0].update(bandwidth_mbps=float("inf")),
        "links[0].bandwidth_mbps is inf, it must be a finite number above 0",
    ),
    "not-a-number": (lambda c: c["links"][0].update(latency_ms=float("nan")), "latency_ms is nan"),
    "huge": (lambda c: c["links"][0].update(latency_ms=10**400), "it must be a finite number"),
    "zero": (lambda c: c["links"][0].update(bandwidth_mbps=0), "bandwidth_mbps is 0"),
    "text": (lambda c: c["links"][0].update(latency_ms="fast"), "latency_ms is 'fast'"),
    "yes": (lambda c: c["devices"][0].update(threads=True), "devices[0].threads is True"),
    "stranger": (lambda c: c["links"][0].update(to="nas"), "links[0].to is 'nas'"),
    "twice": (lambda c: c["links"].append(c["links"][0]), "links[6] is given twice"),
    "no-link": (lambda c: c["links"].pop(), "lacks the link from desk/1 to desk/0"),
    "no-layer": (lambda c: c["layers"].pop(0), "lacks layer a"),
    "layer-twice": (lambda c: c["layers"].append(c["layers"][0]), "for a second time"),
    "signature": (lambda c: c["layers"][0].update(signature="0"), "which no layer of tiny has"),
    "no-device": (lambda c: c["layers"][0]["devices"].pop("pi"), "lacks the key 'pi'"),
    "cost": (
        lambda c: c["layers"][0]["devices"]["pi"].update(per_row_us=-2.5),
        "layers[0].devices.pi.per_row_us is -2.5, it must be a finite number of at least 0",
    ),
    "point": (
        lambda c: c["layers"][0]["devices"]["pi"]["points"].append([3]),
        "points[2] is [3], it must be a pair [rows, microseconds]",
    ),
    "stretch": (lambda c: c["devices"][1].update(stretch=0.5), "devices[1].stretch is 0.5"),
    "same-name": (lambda c: c["devices"][1].update(name="pi"), "same name twice"),
    "number-key": (lambda c: c["layers"][0]["devices"].update({7: 1}), "has the key 7"),
}


@pytest.mark.parametrize(("edit", "complaint"), EDITS.values(), ids=EDITS.keys())
def test_a_wrong_value_is_named_with_its_key(edit: Edit, complaint: str) -> None:
    assert complaint in refusal(edited(edit))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the content is None, it must be a mapping"),
        ("- 1", "the content is [1], it must be a mapping"),
        ("a: [1", "is not valid YAML (line"),
        ("a: !!python/object:os.system x", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
    ],
    ids=["empty", "list", "syntax", "unsafe", "binary"],
)
def test_what_is_no_profile_is_refused(text: str, complaint: str) -> None:
    assert complaint in refusal(text)


def test_other_models_and_shapes_are_refused() -> None:
    text = profile_text(make_profile(), GRAPH)
    assert "is of tiny, but this job runs big" in refusal(text, relu_graph("big", 9))
    assert "with another input shape" in refusal(text, relu_graph("tiny", 9))


def test_other_device_sets_are_refused() -> None:
    text = profile_text(make_profile(), GRAPH)
    assert "is of 3 devices, but this job has 2" in refusal(text, devices=DEVICES[:2])
    renamed = (dataclasses.replace(DEVICES[0], name="phone"), *DEVICES[1:])
    assert "phone of this job is not among them" in refusal(text, devices=renamed)
    narrowed = (dataclasses.replace(DEVICES[0], threads=1), *DEVICES[1:])
    assert "pi with 4 threads, but this job uses 1 there" in refusal(text, devices=narrowed)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\xff\xfe\x80")
    for name, complaint in [
        ("absent", "there is no profile"),
        (".", "cannot be read: Is a directory"),
        ("image", "is not a text file"),
    ]:
        with pytest.raises(ProfileError, match=complaint):
            load_profile(tmp_path / name, graph=GRAPH, devices=DEVICES)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="cannot be written"):
        save_profile(make_profile(), tmp_path / "file" / "p.yaml", graph=GRAPH)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


CONTENT = yaml.safe_load(profile_text(make_profile(), GRAPH))
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
    text = yaml.safe_dump(content, allow_unicode=True)
    complaint = None
    try:
        read = parse_profile(text, "the profile p.yaml", graph=GRAPH, devices=DEVICES)
    except ProfileError as error:
        complaint = str(error)
    if complaint is None:
        assert len(read.links) == 6 and all(len(cost) == 2 for cost in read.costs)
    else:
        assert "p.yaml" in complaint and "\n" not in complaint


def test_shares_that_were_measured_read_back() -> None:
    made = make_profile()
    share = Origin(GRAPH.signatures["a"], GRAPH.by_name["a"].rows, "outputs").derived
    cost = LayerCost(1e-5, 2e-6, ((2, 1.4e-5), (4, 1.8e-5)), ("aten", "aten"))
    made = dataclasses.replace(made, costs=tuple({**costs, share: cost} for costs in made.costs))
    text = profile_text(made, GRAPH)
    read = parse_profile(text, "p.yaml", graph=GRAPH, devices=DEVICES)
    assert [set(costs) for costs in read.costs] == [set(costs) for costs in made.costs]
    assert dict(read.costs[1][share].points) == pytest.approx(dict(cost.points))
    assert read.costs[1][share].engines == cost.engines
    assert read.costs[1][share].seconds(3) == pytest.approx(cost.seconds(3))
    other = text.replace("divided: outputs", "divided: halves")
    with pytest.raises(ProfileError, match="divided is 'halves'"):
        parse_profile(other, "p.yaml", graph=GRAPH, devices=DEVICES)
