"""Units that take as long as they are told to, on a clock of the tests' own."""

from __future__ import annotations

import dataclasses
import os
from random import Random

import pytest
import torch
from torch import nn

from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.runtime import pace
from edgeflow_mpi.runtime.executor import Executor
from edgeflow_mpi.runtime.memory import MemoryNetwork
from edgeflow_mpi.runtime.pace import Pace
from edgeflow_mpi.runtime.urgency import computing, urgent
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.tables import Unit
from tests.inprocess import build


@dataclasses.dataclass
class FakeTime:
    """Stands in for the time module: sleeping and looking take time, nothing else does."""

    now_s: float = 100.0
    oversleep_s: float = 0.0

    def perf_counter(self) -> float:
        self.now_s += 1e-9
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds + self.oversleep_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(pace, "time", fake)
    return fake


UNIT: Unit = None  # type: ignore[assignment]


def test_a_unit_takes_its_time(clock: FakeTime) -> None:
    paced = Pace(lambda unit: 0.25).wrap(UNIT, lambda x: x + 1)
    assert paced(1) == 2
    assert clock.now_s == pytest.approx(100.25, abs=1e-4)


def test_late_sleeps_and_work_in_between_do_not_add_up(clock: FakeTime) -> None:
    clock.oversleep_s = 0.01
    slow = Pace(lambda unit: 0.1)
    paced = slow.wrap(UNIT, lambda: None)
    for _ in range(10):
        paced()
        clock.now_s += 0.005  # the executor's own work
    assert clock.now_s == pytest.approx(101.0, abs=0.02)
    assert slow.wanted_s == pytest.approx(1.0)
    assert slow.late_s == pytest.approx(0.1, rel=0.02)


def test_a_rest_begins_anew(clock: FakeTime) -> None:
    slow = Pace(lambda unit: 0.1)
    paced = slow.wrap(UNIT, lambda: None)
    paced()
    clock.now_s += 5
    slow.rest()
    paced()
    assert clock.now_s == pytest.approx(105.2, abs=1e-3)


def test_a_kernel_slower_than_the_device_counts_as_late(clock: FakeTime) -> None:
    slow = Pace(lambda unit: 0.1)
    slow.wrap(UNIT, lambda: clock.sleep(0.3))()
    assert slow.late_s == pytest.approx(0.2, abs=1e-3)


def test_results_are_recalled_where_requests_are_all_the_same(clock: FakeTime) -> None:
    calls: list[torch.Tensor] = []

    def kernel(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x + 1

    paced = Pace(lambda unit: 0.25, recall=True).wrap(UNIT, kernel)
    x = torch.ones(3)
    first = paced(x)
    expected = first.clone()
    first.zero_()  # memory that others may use again
    assert torch.equal(paced(x), expected)
    assert len(calls) == 1
    assert clock.now_s == pytest.approx(100.5, abs=1e-4)


def test_what_is_computed_for_later_requests_only_takes_what_it_takes_here(
    clock: FakeTime,
) -> None:
    slow = Pace(lambda unit: 0.25, recall=True)
    slow.counts = False
    paced = slow.wrap(UNIT, lambda: torch.ones(1))
    paced()
    assert clock.now_s == pytest.approx(100, abs=1e-4)
    slow.counts = True
    paced()
    assert clock.now_s == pytest.approx(100.25, abs=1e-4)
    assert slow.units == 1


def test_units_count_when_they_are_to(clock: FakeTime) -> None:
    slow = Pace(lambda unit: 0.1)
    paced = slow.wrap(UNIT, lambda: clock.sleep(0.3) or torch.ones(1))
    slow.counts = False
    paced()
    assert (slow.units, slow.wanted_s) == (0, 0.0)
    slow.counts = True
    slow.rest()
    paced()
    slow.wrap(UNIT, lambda: torch.ones(1))()
    assert (slow.units, slow.on_time) == (2, 0)
    slow.rest()
    slow.wrap(UNIT, lambda: torch.ones(1))()
    assert (slow.units, slow.on_time) == (3, 1)


def test_an_urgent_process_is_so_for_a_while_and_computes_less_urgently() -> None:
    def policy() -> tuple[int, int]:
        return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority

    before = policy()
    with urgent():
        inside = policy()
        assert computing(policy) <= inside
        assert policy() == inside
    assert policy() == before
    assert computing(policy) == before
    # Not everybody may be urgent; who may not stays what he was.
    assert inside == before or inside[0] == os.SCHED_FIFO


def test_the_executor_paces_compute_units_and_rests_between_requests(clock: FakeTime) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 8, 8)
    model = build(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)), image)
    plan = random_plan(model.graph, model.needs, 1, Random(0))
    tables = compile_tables(model.graph, model.needs, plan)
    told: list[str] = []

    def seconds(unit: Unit) -> float:
        told.append(unit.layer)
        return 0.5

    executor = Executor(
        model.graph, model.needs, tables, 0, model.weights,
        MemoryNetwork(1).transport(0), pace=Pace(seconds),
    )  # fmt: skip
    assert told == [layer.name for layer in model.graph.layers if layer.kind == "compute"]
    name = model.graph.inputs[0].name
    with torch.no_grad():
        for request in (1, 2):
            clock.now_s += 7  # between requests
            executor.begin({name: image})
            while not executor.finished:
                assert executor.step()
            elapsed_s = clock.now_s - 100
            assert elapsed_s == pytest.approx(request * (7 + 0.5 * len(told)), abs=0.01)
        expected = model.module(image)
    (answer,) = executor.outputs().values()
    torch.testing.assert_close(answer, expected)
