"""Failures reach every rank: agree, agreed, broadcast, on ranks that are threads."""

from __future__ import annotations

import pytest
from profile_cases import on_ranks

from edgeflow_mpi.cluster.agree import agree, agreed, broadcast
from edgeflow_mpi.cluster.comm import Communicator, sleep_until
from edgeflow_mpi.errors import ClusterError, PlanError


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
