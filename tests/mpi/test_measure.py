"""Agreement, devices, links and profiles between real ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

from edgeflow_mpi.cache import Cache
from edgeflow_mpi.cluster.agree import agree, broadcast
from edgeflow_mpi.cluster.devices import gather_devices
from edgeflow_mpi.cluster.links import measure_links
from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.cluster.profiling import profile_for
from edgeflow_mpi.errors import ClusterError, EdgeflowError, PlanError, ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, In, Layer, Step, TensorSpec, Weight
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.spans import Span


def pool_net() -> Graph:
    """A strided convolution and a whole linear layer behind a reshape."""
    image = TensorSpec((1, 3, 20, 16), "float32", 2)
    maps = TensorSpec((1, 8, 10, 8), "float32", 2)
    flat = TensorSpec((1, 640), "float32", None)
    scores = TensorSpec((1, 10), "float32", None)
    conv = Step(
        "aten.conv2d.default",
        (
            ("input", In(0)), ("weight", Weight("kernel")), ("bias", None),
            ("stride", (2, 2)), ("padding", (1, 1)), ("dilation", (1, 1)), ("groups", 1),
        ),
        maps,
    )  # fmt: skip
    reshape = Step("aten.reshape.default", (("self", In(0)), ("shape", (1, 640))), flat)
    linear = Step(
        "aten.linear.default",
        (("input", In(0)), ("weight", Weight("matrix")), ("bias", None)),
        scores,
    )
    return Graph(
        "pool-net",
        (
            Layer("x", "input", (), (), image, 20, True),
            Layer("conv", "compute", ("x",), (conv,), maps, 10, True),
            Layer("flat", "compute", ("conv",), (reshape,), flat, 1, False),
            Layer("linear", "compute", ("flat",), (linear,), scores, 1, False),
            Layer("y", "output", ("linear",), (), scores, 1, False),
        ),
        (
            ("kernel", TensorSpec((8, 3, 3, 3), "float32", None)),
            ("matrix", TensorSpec((10, 640), "float32", None)),
        ),
        ("y",),
    )


def outcome_everywhere(comm: MPI.Intracomm, work: Callable[[], object]) -> list[Any]:
    """What ``work`` returns or raises, on all ranks, known to all."""
    try:
        mine: object = work()
    except EdgeflowError as error:
        mine = error
    return comm.allgather(mine)


def test_no_error_is_no_error(comm: MPI.Intracomm) -> None:
    for _ in range(20):
        agree(comm, None)
    assert comm.allgather(comm.rank) == list(range(comm.size))


def test_the_error_of_any_rank_is_raised_on_all(comm: MPI.Intracomm) -> None:
    for failing in range(comm.size):
        error = PlanError("the plan is empty") if comm.rank == failing else None
        outcomes = outcome_everywhere(comm, lambda error=error: agree(comm, error))
        assert {type(outcome) for outcome in outcomes} == {PlanError}
        assert len({str(outcome) for outcome in outcomes}) == 1
        assert str(outcomes[0]).startswith(f"rank {failing} (") == (failing > 0)


def test_broadcast_makes_once_and_shares(comm: MPI.Intracomm) -> None:
    made = broadcast(comm, lambda: ("made on", comm.rank))
    assert comm.allgather(made) == [("made on", 0)] * comm.size


def test_every_rank_has_a_device_of_its_own_name(comm: MPI.Intracomm) -> None:
    devices = gather_devices(comm, threads=comm.rank + 1)
    assert len({device.name for device in devices}) == comm.size
    assert [device.threads for device in devices] == [rank + 1 for rank in range(comm.size)]
    assert all(device.memory_bytes > 0 and device.cpu for device in devices)
    assert comm.allgather(devices) == [devices] * comm.size


def test_links_between_all_pairs_are_measured(comm: MPI.Intracomm) -> None:
    names = [str(rank) for rank in range(comm.size)]
    links = measure_links(comm, names=names, progress=NoProgress(), budget_s=0.2)
    assert set(links) == {(i, j) for i in range(comm.size) for j in range(comm.size) if i != j}
    assert all(link.latency_s < 1 and link.bandwidth_bytes_s > 1e4 for link in links.values())
    assert comm.allgather(links) == [links] * comm.size


class _DeafComm:
    """The communicator, of which one rank never acknowledges what it receives."""

    def __init__(self, comm: MPI.Intracomm, deaf: int) -> None:
        self._comm, self._deaf = comm, deaf

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Any:
        if self._comm.rank == self._deaf:
            return self._comm.Isend(buf, MPI.PROC_NULL, tag)
        return self._comm.Isend(buf, dest, tag)


def test_a_silent_rank_is_named_on_all_ranks_in_time(comm: MPI.Intracomm) -> None:
    # A communicator of its own: its unanswered messages must not reach later tests.
    own = comm.Dup()
    deaf = _DeafComm(own, deaf=comm.size - 1)
    names = [f"host{rank}" for rank in range(comm.size)]
    outcomes = outcome_everywhere(
        comm, lambda: measure_links(deaf, names=names, progress=NoProgress(), timeout_s=0.3)
    )
    if comm.size == 1:
        assert outcomes == [{}]
        return
    assert {type(outcome) for outcome in outcomes} == {ClusterError}
    assert all(f"(host{comm.size - 1})" in str(outcome) for outcome in outcomes)


def test_a_job_is_profiled_once_and_the_next_reads_the_cache(
    comm: MPI.Intracomm, shared_dir: Path
) -> None:
    graph = pool_net()
    needs = Needs(graph)

    def obtain(**options: Any) -> Profile | None:
        return profile_for(
            comm,
            graph,
            needs,
            cache=Cache(shared_dir, NoProgress()),
            progress=NoProgress(),
            **options,
        )

    first, second = obtain(save_path=shared_dir / "p.yaml"), obtain()
    third = obtain(profile_path=shared_dir / "p.yaml")
    assert (first is None) == (second is None) == (third is None) == (comm.rank > 0)
    if first is not None and second is not None and third is not None:
        assert first.costs == second.costs == third.costs
        assert first.links == second.links == third.links
        assert first.created == second.created
        assert len(first.devices) == len(first.costs) == comm.size
        conv = first.costs[-1][graph.signatures["conv"]]
        assert conv.points[-1][0] == graph.by_name["conv"].rows
        assert Needs(graph).of("conv", Span(4, 6)) == (Span(7, 12),)


def test_a_bad_profile_is_one_sentence_on_all_ranks(comm: MPI.Intracomm, shared_dir: Path) -> None:
    graph = pool_net()
    # Only rank 0 must read the file.
    path = shared_dir / "absent.yaml" if comm.rank == 0 else Path(os.devnull)
    outcomes = outcome_everywhere(
        comm,
        lambda: profile_for(
            comm,
            graph,
            Needs(graph),
            profile_path=path,
            cache=Cache(shared_dir, NoProgress()),
            progress=NoProgress(),
        ),
    )
    assert {type(outcome) for outcome in outcomes} == {ProfileError}
    assert {str(outcome) for outcome in outcomes} == {
        f"there is no profile {shared_dir / 'absent.yaml'}"
    }
