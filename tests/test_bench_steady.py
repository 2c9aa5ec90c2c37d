"""The steady-state bench: once for real, small, and what it makes of made-up results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.steady import Drift, describe
from tests.jobs import finished


def test_drift_is_between_the_first_and_the_last_quarter() -> None:
    medians = [50.0, *[10.0] * 8, *[10.5] * 16, *[11.0] * 8]
    memory = [[900, 1000, *[1000] * 30, 1000], [900, 1000, *[1000] * 30, 1512]]
    found = {"model": "m", "ranks": 2, "requests": 33, "median_ms": medians,
             "resident_bytes": memory}  # fmt: skip
    drift = Drift.of(found)
    assert (drift.first_ms, drift.last_ms, drift.grown_bytes) == (10.0, 11.0, (0, 512))
    assert drift.latency_share == pytest.approx(0.1)
    assert "10.00 ms in the first quarter, 11.00 ms in the last (+10.0 %)" in describe(found, drift)


def test_one_block_is_no_drift() -> None:
    found = {"median_ms": [10.0], "resident_bytes": [[5]]}
    assert Drift.of(found) == Drift(10.0, 10.0, (0,))


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_it_runs(tmp_path: Path) -> None:
    results = tmp_path / "steady.json"
    done = finished(
        [
            sys.executable, "-m", "bench.steady", "--ranks", "2", "--requests", "8",
            "--json", str(results), "--model", "torchvision:resnet18", "--input-shape", "1,3,64,64",
            "--partitioner", "equal", "--threads", "1", "--cache", str(tmp_path / "cache"),
        ],
        timeout_s=180,
    )  # fmt: skip
    assert "8 requests: median latency" in done.success()
    found = json.loads(results.read_text())
    assert len(found["median_ms"]) == 8
    assert [len(held) for held in found["resident_bytes"]] == [8, 8]
    assert {"latency_drift", "grown_bytes"} <= set(found)
