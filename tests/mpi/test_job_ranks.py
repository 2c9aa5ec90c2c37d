"""The parts of a job that need real messages, and a whole job, on the ranks of this run."""

from __future__ import annotations

import ctypes
import json
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI

from edgeflow_mpi.errors import StallError
from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec
from edgeflow_mpi.job.stall import Pulse, explain, tell_and_listen
from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.kernels.llvm.available import available
from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.run import main
from edgeflow_mpi.runtime.distribute import distribute_weights
from edgeflow_mpi.runtime.mpi import MpiTransport
from edgeflow_mpi.runtime.program import Steps, program
from edgeflow_mpi.runtime.shared_weights import share_weights
from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.spans import Span
from edgeflow_mpi.units.tables import Transfer, Unit, UnitTables

BATCH, CHANNELS, ROWS, COLUMNS = 2, 3, 6, 5
MAPS = TensorSpec((BATCH, CHANNELS, ROWS, COLUMNS), "float32", 2)


def wait_until(done: object, seconds: float = 30.0) -> None:
    """Poll ``done()`` until it is true."""
    deadline_s = time.monotonic() + seconds
    assert callable(done)
    while not done():
        assert time.monotonic() < deadline_s, "a message does not arrive"
        time.sleep(1e-4)


@pytest.mark.parametrize("rows", [Span(1, 4), Span(0, ROWS), Span(5, 6)], ids=str)
def test_rows_of_a_batch_travel_in_place(comm: MPI.Intracomm, rows: Span) -> None:
    """Around the ring, three times over the same channels; other rows stay as they are."""
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    mine, theirs = empty(MAPS, ROWS), empty(MAPS, ROWS)
    transport = MpiTransport(comm)
    arriving = Transfer("a", "b", before, comm.rank, rows, tag=3)
    leaving = Transfer("a", "b", comm.rank, after, rows, tag=3)
    receive = transport.open_receive(arriving, Region.of(theirs, MAPS, rows.start, rows.rows))
    send = transport.open_send(leaving, Region.of(mine, MAPS, rows.start, rows.rows))
    for turn in range(3):
        mine.copy_(torch.arange(mine.numel()).reshape(mine.shape) + 1000.0 * comm.rank + turn)
        theirs.fill_(-1)
        transport.start_receives([receive])
        transport.start_sends([send])
        wait_until(lambda: transport.arrived([receive]) == [receive])
        assert transport.arrived([receive]) == []  # once is enough, and it is not posted again
        comm.Barrier()  # after which the next rank has it as well
        transport.settle([send])
        assert transport.sends_complete()
        assert transport.untaken() == []
        expected = torch.full_like(theirs, -1)
        sent = mine + 1000.0 * (before - comm.rank)
        expected[:, :, rows.start : rows.stop] = sent[:, :, rows.start : rows.stop]
        assert torch.equal(theirs, expected)
    transport.close()


@pytest.mark.skipif(not available(), reason="llvmlite is not installed")
@pytest.mark.parametrize("limit_ns", [0, 10**9], ids=["at once", "late"])
def test_messages_go_round_without_python(
    comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, limit_ns: int
) -> None:
    """Around the ring, three times: send, receive into other memory, receive the next there too;
    also if time is up after every operation."""
    monkeypatch.setattr("edgeflow_mpi.kernels.llvm.sequence._LIMIT_NS", limit_ns)
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    mine, theirs = empty(MAPS, ROWS), empty(MAPS, ROWS)
    transport, all_rows = MpiTransport(comm), Span(0, ROWS)
    sends = [
        transport.open_send(
            Transfer("a", "b", comm.rank, after, all_rows, tag=tag), Region.of(mine, MAPS, 0, ROWS)
        )
        for tag in (1, 2)
    ]
    receives = [
        transport.open_receive(
            Transfer("a", "b", before, comm.rank, all_rows, tag=tag),
            Region.of(theirs, MAPS, 0, ROWS),
        )
        for tag in (1, 2)
    ]
    nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    assert nothing is not None
    call = NativeCall(nothing, array("q", [0]))
    made = program(
        [
            Steps((call,), (), (), 0.0, False, (), (), (sends[0],), ()),
            Steps(
                (call,),
                (),
                (receives[0],),
                0.001,
                False,
                (),
                (sends[0],),
                (),
                (((), (receives[1],)),),
            ),
            Steps((call,), (), (), 0.0, False, (), (), (sends[1],), ()),
            Steps((call,), (), (receives[1],), 0.0, True, (), (), (), ()),
        ],
        transport.native(),
    )
    assert made is not None
    assert made.whole == [True] * 4
    assert made.asks == [True, True, True, False]
    for turn in range(3):
        mine.fill_(comm.rank + 10.0 * turn)
        transport.start_receives([receives[0]])
        done = [0]

        def goes_on(to: int, done: list[int] = done) -> bool:
            done[0] = made.run(done[0], 4)
            return done[0] >= to

        wait_until(lambda: goes_on(3))
        assert done == [3]  # somebody must look at what arrives
        wait_until(lambda: transport.arrived([receives[1]]) == [receives[1]])
        assert made.run(3, 4, arrived=True) == 4
        wait_until(transport.sends_complete)
        assert torch.equal(theirs, torch.full_like(theirs, before + 10.0 * turn))
        times = [made.times_s(unit) for unit in range(4)]
        assert sorted(times) == times
        comm.Barrier()
    transport.close()


def test_what_nobody_takes_is_known(comm: MPI.Intracomm) -> None:
    # Too large to be sent before the receiver asks for it.
    spec = TensorSpec((1, 64, 256, 64), "float32", 2)
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    mine, theirs = empty(spec, 256).zero_(), empty(spec, 256)
    transport = MpiTransport(comm)
    rows = Span(0, 256)
    send = transport.open_send(
        Transfer("a", "b", comm.rank, after, rows, tag=1), Region.of(mine, spec, 0, 256)
    )
    receive = transport.open_receive(
        Transfer("a", "b", before, comm.rank, rows, tag=1), Region.of(theirs, spec, 0, 256)
    )
    assert transport.untaken() == []
    transport.start_sends([send])
    assert transport.untaken() == [send]
    assert not transport.sends_complete()
    comm.Barrier()  # nobody asks for a message before its sender has looked
    transport.start_receives([receive])
    wait_until(lambda: transport.arrived([receive]) == [receive])
    wait_until(transport.sends_complete)
    transport.close()


def linear_graph() -> tuple[Graph, dict[str, torch.Tensor]]:
    """Three layers that do nothing but name weights; every rank has "all"."""
    tensors = {
        "all": torch.arange(12.0).reshape(3, 4),
        "last": torch.tensor(7, dtype=torch.int64),
        "rest": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    }
    from edgeflow_mpi.graph.types import Step, Weight

    spec = TensorSpec((1, 4), "float32", None)

    def layer(name: str, weight: str) -> Layer:
        step = Step("aten.add.Tensor", (("self", Weight(weight)), ("other", Weight(weight))), spec)
        return Layer(name, "compute", (), (step,), spec, 1, False)

    specs = tuple(
        (name, TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch."), None))
        for name, t in tensors.items()
    )
    layers = tuple(layer(f"layer_{name}", name) for name in tensors)
    return Graph("weights", layers, specs, ()), tensors


def tables_of(layers: list[list[str]]) -> UnitTables:
    """Tables in which each rank has units of these layers."""
    one = Span(0, 1)
    ranks = tuple(
        tuple(Unit(i, name, rank, one, one, (), (), "add") for i, name in enumerate(names))
        for rank, names in enumerate(layers)
    )
    return UnitTables("weights", "0", "test", None, ranks)


def send(comm: MPI.Intracomm, *args: Any, **had: Any) -> dict[str, torch.Tensor]:
    return distribute_weights(comm, *args, NoProgress(), **had)


@pytest.mark.parametrize("hand_out", [send, share_weights], ids=["messages", "shared memory"])
def test_weights_go_to_the_ranks_that_need_them(
    comm: MPI.Intracomm, hand_out: Callable[..., dict[str, torch.Tensor]]
) -> None:
    graph, tensors = linear_graph()
    last = comm.size - 1
    wanted = [["layer_all"] for _ in range(comm.size)]
    wanted[last].append("layer_last")
    first = tables_of(wanted)
    held = tensors if comm.rank == 0 else {}
    found = hand_out(comm, graph, first, held)
    names = ["all", "last"] if comm.rank == last else ["all"]
    assert list(found) == names
    assert all(torch.equal(found[name], tensors[name]) for name in names)
    # What a rank has already does not travel again, and "rest" goes to the last one alone.
    wanted[last].append("layer_rest")
    held = held if comm.rank == 0 else found
    second = hand_out(comm, graph, tables_of(wanted), held, had=first)
    names = ["all", "last", "rest"] if comm.rank == last else ["all"]
    assert list(second) == names
    assert all(torch.equal(second[name], tensors[name]) for name in names)


def test_ranks_wait_for_the_last_of_them(comm: MPI.Intracomm) -> None:
    own = comm.Dup()
    pulse = Pulse(own, timeout_s=0.4)
    if own.rank == 0:
        # Longer than the others would wait without a sign of life.
        ends_s = time.monotonic() + 1.0
        while time.monotonic() < ends_s:
            pulse.beat()
            time.sleep(0.01)
    pulse.wait_for_all()
    assert own.allgather(own.rank) == list(range(own.size))
    own.Free()


def test_the_rank_behind_a_stall_is_found(comm: MPI.Intracomm) -> None:
    """All but the last rank give up; each waits for the next."""
    own = comm.Dup()  # its unanswered messages must not reach later tests
    last = own.size - 1
    text = ""
    if own.rank < last:
        error = StallError("nothing moves", waits_for=own.rank + 1)
        waits = tell_and_listen(own, error, listen_s=1.0)
        assert waits == {rank: rank + 1 for rank in range(last)}
        text = explain(waits, own.rank, str(error))
    texts = own.allgather(text)
    assert all(text.startswith(f"nothing moves; rank {last} hangs") for text in texts[:last])


def test_a_whole_job(
    comm: MPI.Intracomm, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--model", "tests.job_models:pair", "--input-shape", "2,3,17,12",
        "--input-shape", "2,4,17,12", "--partitioner", "equal", "--repeat", "3",
        "--cache", str(shared_dir), "--json", str(shared_dir / "r.json"), "--verify-layers",
    ]  # fmt: skip
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert (comm.rank == 0) == ("the answer is right" in printed)
    assert (comm.rank > 0) == (printed == "")
    comm.Barrier()
    report = json.loads((shared_dir / "r.json").read_text())
    assert report["ranks"] == comm.size
    assert report["verify"]["passed"] is True
    assert sum(rank["rows"] for rank in report["per_rank"]) > 0
    assert len(report["used_ranks"]) == comm.size


def test_a_job_that_cannot_be(comm: MPI.Intracomm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tests.job_models:raises", "--input-shape", "1,3,8,8"]) == 1
    printed = capsys.readouterr().err
    assert (comm.rank == 0) == ("failed when called (OSError: the disk is full)" in printed)
    assert main(["--repeat", "many"]) == 2
    comm.Barrier()
