"""Failures reach every rank: agree, agreed, broadcast, on ranks that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from edgeflow_mpi.cluster.agree import agree, agreed, broadcast
from edgeflow_mpi.cluster.comm import Communicator, sleep_until
from edgeflow_mpi.errors import ClusterError, EdgeflowError, PlanError

T = TypeVar("T")


class _Ticket:
    def __init__(self, arrived: Callable[[], bool]) -> None:
        self._arrived = arrived

    def Test(self) -> bool:
        return self._arrived()


class _World:
    """A communicator whose ranks are threads of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=10)
        self.slots: list[Any] = [None] * size
        self.arrivals = [0] * size


class _ThreadComm:
    def __init__(self, world: _World, rank: int) -> None:
        self._world, self._rank = world, rank

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return self._world.size

    def Ibarrier(self) -> _Ticket:
        self._world.arrivals[self._rank] += 1
        mine = self._world.arrivals[self._rank]
        return _Ticket(lambda: min(self._world.arrivals) >= mine)

    def allgather(self, sendobj: Any, /) -> list[Any]:
        self._world.slots[self._rank] = sendobj
        self._world.barrier.wait()
        gathered = list(self._world.slots)
        self._world.barrier.wait()
        return gathered

    def bcast(self, obj: Any, /, root: int = 0) -> Any:
        return self.allgather(obj)[root]


def on_ranks(size: int, work: Callable[[Communicator], T]) -> list[T | EdgeflowError]:
    """What ``work`` returns, or the EdgeflowError it raises, on each of ``size`` ranks."""
    world = _World(size)
    outcomes: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(_ThreadComm(world, rank))
        except EdgeflowError as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive(), "a rank hangs"
    return outcomes


@pytest.mark.parametrize("size", [1, 2, 5])
def test_no_error_anywhere_raises_nowhere(size: int) -> None:
    assert on_ranks(size, lambda comm: agree(comm, None)) == [None] * size


@pytest.mark.parametrize("failing", [0, 2])
def test_one_error_is_raised_with_its_class_and_sentence_on_all(failing: int) -> None:
    def work(comm: Communicator) -> None:
        agree(comm, PlanError("the plan is empty") if comm.Get_rank() == failing else None)

    outcomes = on_ranks(3, work)
    assert {type(outcome) for outcome in outcomes} == {PlanError}
    assert len({str(outcome) for outcome in outcomes}) == 1
    text = str(outcomes[0])
    assert text.endswith("the plan is empty")
    assert text.startswith("rank 2 (") if failing else text == "the plan is empty"
    assert [getattr(outcome, "__cause__", None) is not None for outcome in outcomes] == [
        rank == failing for rank in range(3)
    ]


def test_a_foreign_exception_becomes_one_line() -> None:
    def work(comm: Communicator) -> None:
        with agreed(comm):
            raise RuntimeError("\nfirst line\nsecond line")

    for outcome in on_ranks(2, work):
        assert isinstance(outcome, ClusterError)
        assert str(outcome) == "RuntimeError: first line"


def test_further_different_failures_are_counted() -> None:
    def work(comm: Communicator) -> None:
        agree(comm, ClusterError(f"fault {comm.Get_rank()}"))

    assert {str(o) for o in on_ranks(3, work)} == {"fault 0 (2 more ranks failed too)"}


def test_broadcast_shares_what_rank_0_made() -> None:
    def work(comm: Communicator) -> list[int]:
        return broadcast(comm, lambda: [comm.Get_rank(), 7])

    assert on_ranks(3, work) == [[0, 7]] * 3


def test_broadcast_of_a_failure_fails_all_ranks() -> None:
    def make() -> int:
        raise PlanError("no such file")

    outcomes = on_ranks(3, lambda comm: broadcast(comm, make))
    assert [str(outcome) for outcome in outcomes] == ["no such file"] * 3


def test_a_wait_ends_at_its_deadline_with_its_sentence() -> None:
    with pytest.raises(ClusterError, match="rank 3 is silent"):
        sleep_until(lambda: False, timeout_s=0.01, failure="rank 3 is silent")
