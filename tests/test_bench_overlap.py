"""The bench of hidden messages: once for real, small, and made-up traces."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.overlap import describe
from bench.overlap_job import overlap
from edgeflow_mpi.spans import Span
from edgeflow_mpi.units.tables import Requirement, Transfer, Unit
from tests.jobs import finished

ROWS = Span(0, 4)
FLIES = Transfer("a", "c", 0, 1, ROWS, tag=0)
SCATTERED = Transfer("x", "b", 0, 1, ROWS, tag=1)


def unit(index: int, layer: str, rank: int, *, takes: tuple[Transfer, ...] = (),
         sends: tuple[Transfer, ...] = ()) -> Unit:  # fmt: skip
    needs = tuple(Requirement(t.producer, ROWS, (t,)) for t in takes)
    return Unit(index, layer, rank, ROWS, ROWS, needs, sends, "conv2d")


@pytest.mark.parametrize(
    ("starts_s", "exposed_s", "hidden"),
    [
        pytest.param(12.0, 0.0, 1.0, id="computed-meanwhile"),
        pytest.param(13.0, 1.0, 0.5, id="half-of-it"),
        pytest.param(16.0, 4.0, -1.0, id="slower-than-its-link"),
    ],
)
def test_what_nothing_was_computed_in(starts_s: float, exposed_s: float, hidden: float) -> None:
    sender = [(unit(0, "x", 0, sends=(SCATTERED,)), 0.0, 1.0),
              (unit(1, "a", 0, sends=(FLIES,)), 1.0, 9.0)]  # fmt: skip
    taker = [(unit(0, "b", 1, takes=(SCATTERED,)), 5.0, 12.0),
             (unit(1, "c", 1, takes=(FLIES,)), starts_s, 20.0)]  # fmt: skip
    found = overlap([sender, taker], lambda transfer: 2.0, frozenset({"x"}))
    assert (found.transfer_s, found.exposed_s) == (2.0, exposed_s)
    assert found.hidden_share == hidden


def test_who_sends_late_is_not_the_link() -> None:
    sender = [(unit(0, "a", 0, sends=(FLIES,)), 0.0, 9.0)]
    taker = [(unit(0, "c", 1, takes=(FLIES,)), 9.5, 20.0)]
    assert overlap([sender, taker], lambda transfer: 1.0, frozenset()).exposed_s == 0.5


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(250)
def test_it_runs(tmp_path: Path) -> None:
    results = tmp_path / "overlap.json"
    done = finished(
        [
            sys.executable, "-m", "bench.overlap", "--ranks", "2", "--rounds", "1",
            "--json", str(results), "--model", "torchvision:resnet18", "--input-shape", "1,3,64,64",
            "--partitioner", "equal", "--threads", "1", "--repeat", "2", "--warmup", "1",
            "--cache", str(tmp_path / "cache"),
        ],
        timeout_s=240,
    )  # fmt: skip
    found = json.loads(results.read_text())
    assert [each["progress_thread"] for each in found] == [True, False]
    assert all(each["transfer_ms"] > 0 and each["exposed_ms"] >= 0 for each in found)
    assert describe(found) in done.success()
