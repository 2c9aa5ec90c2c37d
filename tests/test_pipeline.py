"""Several requests under way at once: each answer is that of its own request, and waits end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random
from threading import RLock

import pytest
import torch
from torch import nn

from edgeflow_mpi.errors import StallError
from edgeflow_mpi.job.waiting import describe
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.runtime.memory import MemoryNetwork, MemoryTransport
from edgeflow_mpi.runtime.session import Answer, Session
from edgeflow_mpi.runtime.waiting import WaitPolicy
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.dryrun import dry_run, dry_run_together
from edgeflow_mpi.units.faults import DeadlockError
from tests.inprocess import Model, build, plain, relative_error

Tensor = torch.Tensor
RANKS = 3
REQUESTS = 7


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.three = nn.Conv2d(8, 4, 5, padding=2, stride=2)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        x = torch.relu(self.two(x) + x)
        return self.last(self.three(x).mean((2, 3)))  # type: ignore[no-any-return]


class LockedTransport(MemoryTransport):
    """An end that ranks in threads of one process may use."""

    lock = RLock()

    def start_receives(self, handles: Sequence[int]) -> None:
        with self.lock:
            super().start_receives(handles)

    def settle(self, handles: Sequence[int]) -> None:
        with self.lock:
            super().settle(handles)

    def start_sends(self, handles: Sequence[int]) -> None:
        with self.lock:
            super().start_sends(handles)

    def arrived(self, handles: Sequence[int]) -> list[int]:
        with self.lock:
            return super().arrived(handles)

    def sends_complete(self) -> bool:
        with self.lock:
            return super().sends_complete()


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(1)
    return build(Residual(), torch.randn(1, 3, 17, 13))


def sessions(model: Model, in_flight: int, seed: int, policy: WaitPolicy) -> list[Session]:
    plan = random_plan(model.graph, model.needs, RANKS, Random(seed))
    tables = compile_tables(model.graph, model.needs, plan)
    networks = [MemoryNetwork(RANKS) for _ in range(in_flight)]
    return [
        Session(
            model.graph, model.needs, tables, rank, model.weights,
            [LockedTransport(network, rank) for network in networks], policy,
        )
        for rank in range(RANKS)
    ]  # fmt: skip


def on_threads(calls: Sequence[Callable[[], list[Answer]]]) -> list[list[Answer]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def runner(session: Session, requests: Sequence[Sequence[Tensor]]) -> Callable[[], list[Answer]]:
    def run() -> list[Answer]:
        with torch.no_grad():  # is a setting of the thread
            return list(session.run_all(requests))

    return run


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_every_request_has_its_own_answer(model: Model, in_flight: int, seed: int) -> None:
    policy = WaitPolicy(yield_s=0.0, timeout_s=30.0)
    ranks = sessions(model, in_flight, seed, policy)
    images = [torch.randn(1, 3, 17, 13) for _ in range(REQUESTS)]
    given: list[list[Sequence[Tensor]]] = [[[image] for image in images]]
    given += [[() for _ in images] for _ in range(1, RANKS)]
    for _ in range(2):  # a pipeline that has run empty fills again
        answers, *others = on_threads(
            [runner(session, requests) for session, requests in zip(ranks, given, strict=True)]
        )
        assert [len(made) for made in others] == [REQUESTS] * (RANKS - 1)
        for image, answer in zip(images, answers, strict=True):
            assert relative_error(answer.outputs, plain(model.module, image)) < 1e-5
            assert answer.latency_s > 0
    assert all(session.in_flight == in_flight for session in ranks)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_ranks_without_units_wait_for_nothing(model: Model, in_flight: int) -> None:
    plan = random_plan(model.graph, model.needs, 1, Random(0))
    tables = compile_tables(model.graph, model.needs, plan)
    tables = replace(tables, ranks=(*tables.ranks, ()))
    networks = [MemoryNetwork(2) for _ in range(in_flight)]
    idle = Session(
        model.graph, model.needs, tables, 1, model.weights,
        [network.transport(1) for network in networks], WaitPolicy(yield_s=0.0, timeout_s=0.05),
    )  # fmt: skip
    assert [answer.outputs for answer in idle.run_all([()] * 3)] == [()] * 3


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_rank_whose_neighbours_do_nothing_gives_up(model: Model, in_flight: int) -> None:
    naps: list[float] = []
    policy = WaitPolicy(yield_s=0.0, timeout_s=0.05, sleep=naps.append)
    first, *_ = sessions(model, in_flight, 0, policy)
    with torch.no_grad(), pytest.raises(StallError, match=r"no message has moved for 0\.05 s"):
        list(first.run_all([[torch.randn(1, 3, 17, 13)]] * 3))
    assert naps


@pytest.mark.parametrize("policy", [WaitPolicy(spin_s=60.0), WaitPolicy(yield_s=60.0)])
def test_who_spins_or_yields_does_not_sleep_and_gives_up(model: Model, policy: WaitPolicy) -> None:
    def never(seconds: float) -> None:
        raise AssertionError("slept")

    policy = WaitPolicy(policy.spin_s, policy.yield_s, timeout_s=0.02, sleep=never)
    first, *_ = sessions(model, 1, 0, policy)
    with torch.no_grad(), pytest.raises(StallError, match="waits for rows"):
        first.run([torch.randn(1, 3, 17, 13)])


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (WaitPolicy(spin_s=float("inf"), yield_s=0.0), "polls"),
        (WaitPolicy(yield_s=float("inf")), "yields its core"),
        (WaitPolicy(yield_s=0.0), "sleeps 20 µs at a time"),
        (
            WaitPolicy(spin_s=0.0002),
            "polls for 0.2 ms, then yields its core for 2 ms, then sleeps 20 µs at a time",
        ),
    ],
    ids=["spin", "yield", "sleep", "auto"],
)
def test_how_a_rank_waits_in_words(policy: WaitPolicy, text: str) -> None:
    assert describe(policy) == text


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_dry_run_of_several_requests_keeps_their_order(in_flight: int, seed: int) -> None:
    torch.manual_seed(1)
    model = build(Residual(), torch.randn(1, 3, 17, 13))
    plan = random_plan(model.graph, model.needs, 4, Random(seed))
    tables = compile_tables(model.graph, model.needs, plan)
    count = 5
    order = dry_run_together(tables, in_flight, count)
    for units, ran in zip(tables.ranks, order, strict=True):
        assert sorted(((n, unit.index) for n, unit in ran)) == [
            (n, unit.index) for n in range(count) for unit in units
        ]
        left = {n: len(units) for n in range(count)}
        for request, _ in ran:
            left[request] -= 1
            # Requests begin in their order, and no more than so many at once.
            open_before = [n for n in range(request) if left[n]]
            assert request - min(open_before, default=request) < in_flight
    if in_flight == 1:
        alone = dry_run(tables)
        assert [sorted(u.index for u in ran) for ran in alone] == [
            [unit.index for unit in units] for units in tables.ranks
        ]
        assert all([n for n, _ in ran] == sorted(n for n, _ in ran) for ran in order)


def test_a_message_that_nobody_sends_is_a_deadlock_with_slots_too(model: Model) -> None:
    for seed in range(20):
        plan = random_plan(model.graph, model.needs, RANKS, Random(seed))
        tables = compile_tables(model.graph, model.needs, plan)
        if any(unit.forwards for unit in tables.ranks[1]):
            break
    mute = tuple(replace(unit, forwards=()) for unit in tables.ranks[1])
    broken = replace(tables, ranks=(tables.ranks[0], mute, tables.ranks[2]))
    with pytest.raises(DeadlockError, match="never becomes ready in the dry run"):
        dry_run_together(broken, 2, 4)
