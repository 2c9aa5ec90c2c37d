"""Partitioners side by side: what is offered, what is not, and what is said about it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import BRANCHES, GRAPH, LARGE, cluster, task

from edgeflow_mpi.cluster.subset import subset
from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.plan import check_plan
from edgeflow_mpi.partition.relocate import narrowed, spread_out
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.report.candidates import Task, judged, redundant_share
from edgeflow_mpi.report.plan_report import page, to_json, write_json
from edgeflow_mpi.report.planning import Comparison, compare_partitioners
from edgeflow_mpi.report.remedy import WORTH_IT, faster_network, find_remedy
from edgeflow_mpi.report.verdict import verdict
from edgeflow_mpi.units.memory import plan_memory

QUICK = ("equal", "proportional", "single")
KEYS = {
    "model", "input_shape", "single_device_ms", "single_device", "lower_bound_ms", "verdict",
    "plans",
}  # fmt: skip
PLAN_KEYS = {
    "partitioner", "predicted_ms", "speedup", "gap", "devices_used", "bytes_moved", "messages",
    "division", "redundant_share", "peak_memory_bytes", "planning_s", "simulations",
}  # fmt: skip


def compared(what: Task, *names: str) -> Comparison:
    return compare_partitioners(what, names or QUICK, NoProgress())


def said(comparison: Comparison) -> str:
    return verdict(comparison, NoProgress())


FAST = cluster(2, 2, 2, 2, mbps=10_000, ms=0.001)
SLOW = cluster(2, 2, mbps=1, ms=20)


def test_numbers_agree_with_the_plans_they_are_of() -> None:
    comparison = compared(task(FAST, LARGE))
    single = comparison.single
    assert single is not None and len(single.used) == 1
    for candidate in comparison.candidates:
        check_plan(candidate.graph, candidate.plan)
        t = comparison.task
        again = predict(t.graph, t.needs, t.profile, candidate.plan)
        assert candidate.predicted_s == again.makespan_s == candidate.plan.predicted_s
        assert candidate.memory == plan_memory(t.graph, t.needs, candidate.plan)
        assert candidate.bytes_moved == sum(again.bytes_sent)
        assert candidate.predicted_s >= comparison.lower_bound_s * (1 - 1e-9)
        speedup = comparison.speedup(candidate)
        assert speedup == pytest.approx(single.predicted_s / candidate.predicted_s)
    best = comparison.best
    assert best.predicted_s == min(c.predicted_s for c in comparison.candidates)
    assert best.used == (0, 1, 2, 3)
    assert comparison.gap(best) == pytest.approx(best.predicted_s / comparison.lower_bound_s - 1)


def test_the_single_device_counts_the_way_there_and_back() -> None:
    what = task(cluster(1, 10, mbps=100, ms=1))
    comparison = compared(what, "single")
    out = GRAPH.inputs[0].out.size_bytes * 8 / 100e6 + 1e-3
    work = sum(5e-6 + 2 * layer.macs / 10e9 for layer in GRAPH.layers if layer.macs)
    assert comparison.alone[1].predicted_s == pytest.approx(2 * out + work)
    assert comparison.single is comparison.alone[0]
    near = compared(task(cluster(0.1, 10, mbps=100, ms=1)), "single")
    assert near.single is near.alone[1]


def test_excluded_devices_get_nothing() -> None:
    comparison = compared(task(FAST + "exclude: [d1, d3]", LARGE))
    assert set(comparison.alone) == {0, 2}
    for candidate in comparison.candidates:
        assert set(candidate.used) <= {0, 2}
        assert candidate.plan.ranks == 4
        assert [m.peak_bytes for m in candidate.memory][1::2] == [0, 0]
    fewer = compared(task(cluster(2, 2, mbps=10_000, ms=0.001), LARGE))
    for candidate, other in zip(comparison.candidates, fewer.candidates, strict=True):
        assert candidate.predicted_s == pytest.approx(other.predicted_s)
    assert comparison.lower_bound_s == pytest.approx(fewer.lower_bound_s)


def test_a_device_that_lacks_the_memory_is_left_out() -> None:
    what = task(FAST, LARGE)
    free = compared(what)
    needed = min(c.memory[2].peak_bytes for c in free.candidates if 2 in c.used)
    small = replace(
        what.profile,
        devices=tuple(
            replace(device, memory_bytes=needed - 1) if rank == 2 else device
            for rank, device in enumerate(what.profile.devices)
        ),
    )
    comparison = compared(replace(what, profile=small))
    assert 2 not in comparison.alone
    for candidate in comparison.candidates:
        assert 2 not in candidate.used
        assert all(
            memory.peak_bytes <= device.memory_bytes
            for memory, device in zip(candidate.memory, small.devices, strict=True)
        )


def with_memory(what: Task, *limits_bytes: int) -> Task:
    devices = tuple(
        replace(device, memory_bytes=limit)
        for device, limit in zip(what.profile.devices, limits_bytes, strict=True)
    )
    return replace(what, profile=replace(what.profile, devices=devices))


def test_the_first_device_is_spared_where_it_lacks_the_memory() -> None:
    """It must hold the image and the answer, and there is room for no more."""
    what = task(FAST, LARGE)
    image = LARGE.inputs[0].out.size_bytes
    comparison = compared(with_memory(what, 4 * image, *[10**9] * 3))
    equal, proportional, _ = comparison.candidates
    assert equal.used == proportional.used == (1, 2, 3)
    for candidate in comparison.candidates:
        assert candidate.memory[0].peak_bytes <= 4 * image
    assert proportional.simulations > 7


def test_memory_for_nothing_is_one_sentence_with_the_numbers() -> None:
    with pytest.raises(PlanError) as caught:
        compared(task(cluster(2, 2, memory_mb=0.05), LARGE))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "large does not fit into the memory of these devices" in sentence
    assert "on d0, which has 0.05 MB" in sentence
    assert "single needs" in sentence and "equal needs" in sentence


def test_a_model_too_large_for_each_device_alone_is_divided() -> None:
    """Two layers of 17 MB each, next to each other, on devices of 25 MB."""
    wide = cluster(2, 2, mbps=10_000, ms=0.001, memory_mb=25)
    comparison = compared(task(wide, BRANCHES), "layers", "single")
    assert comparison.single is None
    assert [c.partitioner for c in comparison.candidates] == ["layers"]
    assert comparison.best.used == (0, 1)
    assert comparison.speedup(comparison.best) is None
    assert [item.partitioner for item in comparison.refused] == ["single"]
    words = said(comparison)
    assert words.startswith(
        "Use both of your devices: no device has the memory for the model alone, together "
    )
    found = to_json(comparison, words)
    assert found["single_device"] is None and found["single_device_ms"] is None
    text = page(comparison, words)
    assert "single: not offered, it needs 34 MB on d0, which has 25 MB" in text


def test_the_verdict_names_devices_gain_and_certificate() -> None:
    comparison = compared(task(FAST, LARGE))
    words = said(comparison)
    assert words.startswith("Use all 4 of your devices: ")
    assert "× faster than d0 alone, " in words
    assert "No plan can" in words
    mixed = compared(task(cluster(2, 2, 0.001, mbps=10_000, ms=0.001), LARGE), "proportional")
    assert said(mixed).startswith("Use 2 of your 3 devices (d0 and d1): ")
    assert "d2 does not help" in said(mixed)


def test_the_verdict_against_distributing_says_what_would_change_it() -> None:
    comparison = compared(task(SLOW, LARGE))
    words = said(comparison)
    assert words.startswith("Do not distribute this model: d0 alone takes ")
    remedy = find_remedy(comparison, NoProgress())
    assert remedy.both_factor is not None and remedy.both_factor > 1
    assert "For a gain of 1.2×" in words
    assert "(now 1 Mbit/s)" in words or "(now 20 ms)" in words


def test_what_would_have_to_change_is_enough() -> None:
    comparison = compared(task(SLOW, LARGE))
    remedy = find_remedy(comparison, NoProgress())
    assert remedy.both_factor is not None
    for factor, enough in ((remedy.both_factor, True), (remedy.both_factor / 1.05, False)):
        profile = faster_network(comparison.task.profile, factor, factor)
        better = compared(replace(comparison.task, profile=profile), *QUICK)
        assert better.single is not None
        gain = better.single.predicted_s / better.best.predicted_s
        assert gain >= WORTH_IT or not enough


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (cluster(2), "There is one device to use: d0 alone takes "),
        (cluster(2, 2) + "exclude: [d1]", "There is one device to use: d0 alone takes "),
        (
            cluster(0.2, 20, mbps=1000, ms=0.01),
            "Do not distribute this model: d1 alone takes",
        ),
        (cluster(20, 0.02, mbps=1, ms=1), "only 1.00× as fast as the fastest one"),
    ],
    ids=["one", "one-left", "elsewhere", "too-slow"],
)
def test_other_verdicts(text: str, words: str) -> None:
    assert words in said(compared(task(text, LARGE)))


def test_where_only_one_partitioner_was_asked_the_verdict_says_so() -> None:
    words = said(compared(task(SLOW, LARGE), "equal"))
    assert words.endswith("(Only equal was tried.)")


def test_json_has_the_promised_keys(tmp_path: Path) -> None:
    comparison = compared(task(FAST, LARGE))
    file = tmp_path / "plans.json"
    write_json(comparison, said(comparison), file)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found) == KEYS
    assert all(set(plan) == PLAN_KEYS for plan in found["plans"])
    assert found["model"] == "large" and found["input_shape"] == [1, 48, 48, 48]
    assert found["single_device"] == "d0"
    for plan in found["plans"]:
        assert plan["predicted_ms"] >= found["lower_bound_ms"] * (1 - 1e-9)
        assert plan["speedup"] == pytest.approx(found["single_device_ms"] / plan["predicted_ms"])
        assert 1 <= plan["devices_used"] <= 4
        assert len(plan["peak_memory_bytes"]) == 4
        assert 0 <= plan["redundant_share"] < 1 and plan["gap"] >= 0


def test_the_page_has_a_line_for_every_partitioner_and_device() -> None:
    comparison = compared(task(FAST + "exclude: [d3]", LARGE))
    text = page(comparison, said(comparison))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    for name in (*QUICK, "d0", "d1", "d2", "d3"):
        assert any(line.startswith(name) for line in lines)
    assert "1 device excluded" in text.replace("\n", " ")
    assert text.endswith(said(comparison).split()[-1])


def test_redundant_work_is_counted_once() -> None:
    comparison = compared(task(FAST, LARGE), "equal")
    plan = comparison.best.plan
    assert redundant_share(LARGE, plan) == 0.0
    first = LARGE.layers[1].name
    spans = plan.layers[first]
    everything = spans.owned[0].hull(spans.owned[-1])
    twice = replace(spans, computed=(everything, *spans.computed[1:]))
    again = replace(plan, layers={**plan.layers, first: twice})
    extra = (everything.rows - spans.owned[0].rows) / everything.rows
    assert redundant_share(LARGE, again) == pytest.approx(extra / (3 + extra))
    candidate = judged(comparison.task, "equal", again)
    assert candidate.redundant_share == pytest.approx(extra / (3 + extra))


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.floats(0.1, 50), min_size=2, max_size=5),
    st.floats(1, 5000),
    st.floats(0, 3),
    st.data(),
)
def test_leaving_devices_out_is_as_if_they_were_not_there(
    speeds: list[float], mbps: float, ms: float, data: st.DataObject
) -> None:
    what = task(cluster(*speeds, mbps=mbps, ms=ms))
    out = data.draw(st.sets(st.integers(1, len(speeds) - 1)))
    kept = [rank for rank in range(len(speeds)) if rank not in out]
    comparison = compared(replace(what, excluded=frozenset(out)))
    part = subset(what.profile, kept)
    for candidate in comparison.candidates:
        check_plan(what.graph, candidate.plan)
        assert not set(candidate.used) & out
    fewer = compared(replace(what, profile=part))
    for candidate, other in zip(comparison.candidates, fewer.candidates, strict=True):
        assert spread_out(other.plan, kept, len(speeds)) == candidate.plan
        assert narrowed(candidate.plan, kept) == other.plan
        assert math.isclose(candidate.predicted_s, other.predicted_s)
