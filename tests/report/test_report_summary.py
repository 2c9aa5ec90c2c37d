"""The summary, word for word, and what it says in cases that need a word of caution."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import CLUSTER, ONE_HOST, SLOWER

from edgeflow_mpi.report.results import (
    Difference,
    Latency,
    LayerComparison,
    RunReport,
    SingleDevice,
    Verification,
)
from edgeflow_mpi.report.summary import WIDTH, layer_report, summary

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
UPDATE_VARIABLE = "EDGEFLOW_UPDATE_GOLDEN"


def is_golden(text: str, file: str) -> bool:
    """Whether the text is as reviewed; ``EDGEFLOW_UPDATE_GOLDEN=1`` writes it anew."""
    path = GOLDEN / file
    if os.environ.get(UPDATE_VARIABLE):
        path.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    return f"{text}\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("report", "file"),
    [
        pytest.param(CLUSTER, "summary_cluster.txt", id="cluster"),
        pytest.param(SLOWER, "summary_slower.txt", id="slower and wrong"),
        pytest.param(ONE_HOST, "summary_one_host.txt", id="one host"),
    ],
)
def test_golden_summary(report: RunReport, file: str) -> None:
    assert is_golden(summary(report), file)


def test_golden_layers() -> None:
    assert SLOWER.verification is not None
    assert SLOWER.verification.layers is not None
    assert is_golden(layer_report(SLOWER.verification.layers), "summary_layers.txt")


def fact(report: RunReport, label: str) -> str:
    """What the summary says behind a label, on one line."""
    lines = summary(report).split("\n")
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"  {label}  ")]
    found = [lines[start][len(label) + 2 :].strip()]
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 17):
            break
        found.append(line.strip())
    return " ".join(found)


@pytest.mark.parametrize(
    ("alone_ms", "words"),
    [
        (384.3, "2.1× faster than the best single device alone (rank 1, pi4-b)"),
        (192.15, "1.05× faster than the best single device alone (rank 1, pi4-b)"),
        (183.5, "none: as fast as the best single device alone (rank 1, pi4-b)"),
        (
            91.5,
            (
                "2.0× SLOWER than the best single device alone (rank 1, pi4-b): do not distribute "
                "this model on these devices, run it on pi4-b alone"
            ),
        ),
    ],
)
def test_the_speedup_in_words(alone_ms: float, words: str) -> None:
    assert fact(replace(CLUSTER, single_device=SingleDevice(alone_ms, 1)), "speedup") == words


def test_without_a_baseline_there_is_no_speedup_and_the_reason_is_given() -> None:
    bare = replace(CLUSTER, single_device=None)
    assert fact(bare, "single device") == "not measured"
    assert "speedup" not in summary(bare)
    too_large = replace(bare, single_device_note="fits on no device")
    assert fact(too_large, "single device") == "fits on no device"


def test_one_rank_and_a_plan_for_one_device_divide_nothing() -> None:
    one = replace(CLUSTER, per_rank=CLUSTER.per_rank[:1], single_device=SingleDevice(183.0, 0))
    assert fact(one, "speedup") == "none to be had: there is one rank, so nothing is divided"
    left = tuple(
        replace(stats, rows=stats.rows if stats.rank == 1 else 0) for stats in CLUSTER.per_rank
    )
    words = fact(replace(CLUSTER, per_rank=left), "speedup")
    assert words == "none: the plan does not divide the model, rank 1, pi4-b computes all of it"
    left = tuple(
        replace(stats, rows=stats.rows if stats.rank == 1 else 0) for stats in ONE_HOST.per_rank
    )
    shared = fact(replace(ONE_HOST, per_rank=left), "speedup")
    assert shared.startswith("none: the plan does not divide the model, rank 1, laptop")
    assert "thread" in shared and shared.endswith("; the single device has its host's cores")


def test_ranks_that_are_left_out_and_hosts_that_are_shared_are_named() -> None:
    changed = (
        CLUSTER.per_rank[0],
        replace(CLUSTER.per_rank[1], host="pi4-a"),
        replace(CLUSTER.per_rank[2], rows=0),
    )
    text = summary(replace(CLUSTER, per_rank=changed))
    assert "* Ranks share the cores of pi4-a (2 ranks)." in text
    assert "* The plan leaves rank 2 out: nothing is computed there." in text


def test_on_one_host_nothing_is_claimed_of_an_answer_that_was_not_verified() -> None:
    text = summary(replace(ONE_HOST, verification=None))
    assert "3 ranks share one host: this run does not show how fast a cluster is." in text
    assert "the answer is right" not in text
    assert "--verify" in text


@pytest.mark.parametrize(
    ("predicted_ms", "words"),
    [
        (183.2, "183.2 ms, as measured"),
        (366.0, "366.0 ms, 100 % more than measured"),
        (91.5, "91.5 ms, 50 % less than measured"),
        (0.25, "0.250 ms, 100 % less than measured"),
    ],
)
def test_the_prediction_and_its_error(predicted_ms: float, words: str) -> None:
    assert fact(replace(CLUSTER, predicted_ms=predicted_ms), "predicted") == words


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        pytest.param(
            Difference("mask", 1.0, 0.25, 0.0, 0.0, counted=True),
            "the answer is WRONG: off by 2.5e-01 of its elements, allowed 0 (plain torch: 0)",
            id="integers",
        ),
        pytest.param(
            Difference("out", 1.0, 0.25, 0.0, 1e-5, "it has values that are not finite"),
            "the answer is WRONG: it has values that are not finite",
            id="fault",
        ),
    ],
)
def test_how_an_answer_is_wrong(difference: Difference, words: str) -> None:
    assert fact(replace(CLUSTER, verification=Verification((difference,))), "verified") == words


def test_right_outputs_with_a_wrong_layer_are_no_success() -> None:
    right = Difference("out", 0.0, 0.0, 0.0, 1e-5)
    wrong = LayerComparison((Difference("conv", 1.0, 1.0, 0.0, 1e-5),))
    report = replace(CLUSTER, verification=Verification((right,), layers=wrong))
    assert fact(report, "verified").endswith("; BUT the first layer that differs is conv")
    agreeing = replace(wrong, differences=(replace(right, name="conv"),))
    report = replace(CLUSTER, verification=Verification((right,), layers=agreeing))
    assert fact(report, "verified").endswith("; all 1 layers agree as well")
    assert layer_report(agreeing).startswith("All 1 layers agree with plain torch.")


def test_no_line_is_too_wide_whatever_the_names_are() -> None:
    stats = replace(
        CLUSTER.per_rank[0],
        host="a-host-with-quite-a-long-name.in.some.domain.example.org",
        rows=10**7,
        units=12345,
        compute_ms=123456.7,
        wait_ms=123456.7,
        bytes_sent=10**12,
        messages_sent=10**6,
        peak_memory_bytes=10**13,
    )
    wide = replace(
        SLOWER,
        model="some.package.with.a.long.name:and_a_factory_of_some_length" * 3,
        weights_note="weights from " + "a/long/path/" * 20,
        per_rank=tuple(replace(stats, rank=rank) for rank in range(12)),
        latency=Latency(tuple(float(i + 1) * 1e5 for i in range(1000))),
        notes=("a note " * 30,),
    )
    assert max(map(len, summary(wide).split("\n"))) <= WIDTH
    layers = LayerComparison(
        tuple(Difference(f"layer_{'x' * i}", 1.0, 1.0, 1.0, 1e-5) for i in range(100))
    )
    found = layer_report(layers).split("\n")
    assert max(map(len, found)) <= WIDTH
    assert sum("DIFFERS" in line for line in found) == 10
