"""Where the time of units goes: the parts add up, on a clock of the tests' own."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn

from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.report.breakdown import RankTimes, UnitTimes, breakdown_json, breakdown_rows
from edgeflow_mpi.report.results import to_json
from edgeflow_mpi.report.summary import summary
from edgeflow_mpi.runtime import meter as module
from edgeflow_mpi.runtime.memory import MemoryNetwork
from edgeflow_mpi.runtime.meter import PARTS, Meter
from edgeflow_mpi.runtime.session import Session
from edgeflow_mpi.runtime.waiting import WaitPolicy
from edgeflow_mpi.units.compile import compile_tables
from tests.inprocess import build
from tests.report.report_cases import CLUSTER


class Clock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def perf_counter(self) -> float:
        return self.now_s

    def takes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_the_parts_of_a_unit_add_up(clock: Clock) -> None:
    meter = Meter(2)
    kernel = meter.timed("kernel", clock.takes)
    copy = meter.timed("copy", clock.takes)
    ask = meter.timed("requests", clock.takes)
    for _ in range(2):
        clock.takes(100.0)  # between requests: nobody's
        meter.begin()
        kernel(3.0)
        copy(0.5)
        clock.takes(0.25)
        meter.close(0, last=False)
        ask(2.0)
        meter.idle()
        assert meter.waiting(lambda: ask(4.0) or 4.0) == 4.0  # type: ignore[func-returns-value]
        ask(1.0)
        kernel(7.0)
        meter.close(1, last=True)
    assert meter.requests == 2
    first, second = meter.units_ms()
    assert first == pytest.approx(
        {"kernel": 3e3, "copy": 500.0, "requests": 0.0, "waiting": 0.0, "dispatch": 250.0}
    )
    assert second == pytest.approx(
        {"kernel": 7e3, "copy": 0.0, "requests": 1e3, "waiting": 6e3, "dispatch": 0.0}
    )
    meter.reset()
    assert meter.requests == 0
    assert all(ms == 0.0 for unit in meter.units_ms() for ms in unit.values())


def test_a_session_takes_down_all_its_units() -> None:
    image = torch.randn(1, 3, 9, 9)
    model = build(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), image)
    plan = random_plan(model.graph, model.needs, 1, Random(0))
    tables = compile_tables(model.graph, model.needs, plan)
    transports = [MemoryNetwork(1).transport(0) for _ in range(2)]
    session = Session(
        model.graph, model.needs, tables, 0, model.weights, transports, WaitPolicy(), metered=True
    )
    with torch.no_grad():
        answers = [answer.outputs[0] for answer in session.run_all([[image]] * 4)]
        for answer in answers:
            torch.testing.assert_close(answer, model.module(image))
    assert session.meter is not None
    assert session.meter.requests == 4
    units = session.meter.units_ms()
    assert len(units) == len(tables.ranks[0])
    assert sum(unit["kernel"] for unit in units) > 0
    assert all(unit["waiting"] == 0 for unit in units)
    assert all(ms > -1e-9 for unit in units for ms in unit.values())


def test_tables_of_ranks_and_of_the_worst_units() -> None:
    quick = UnitTimes("a[0:3]@0", "conv2d", dict.fromkeys(PARTS, 0.25))
    slow = UnitTimes("b[3:4]@1", "conv2d", {**dict.fromkeys(PARTS, 0.5), "waiting": 8.0})
    times = (RankTimes(0, (quick, quick)), RankTimes(1, (slow,)))
    head, ranks, unit_head, units = breakdown_rows(times)
    assert head == (
        "rank",
        "kernel",
        "copy",
        "messages",
        "dispatch",
        "waiting",
        "sum",
        "a unit's own",
    )
    assert ranks == [
        ("0", "0.50", "0.50", "0.50", "0.50", "0.50", "2.50", "750 µs"),
        ("1", "0.50", "0.50", "0.50", "0.50", "8.00", "10.00", "1500 µs"),
    ]
    assert unit_head[0] == "unit"
    assert [row[0] for row in units] == ["b[3:4]@1", "a[0:3]@0", "a[0:3]@0"]
    report = replace(CLUSTER, breakdown=times)
    assert "b[3:4]@1" in summary(report)
    assert "b[3:4]@1" not in summary(CLUSTER)
    assert json.loads(json.dumps(to_json(report)["breakdown"])) == breakdown_json(times)
    assert to_json(CLUSTER)["breakdown"] is None
