"""A small graph, and a communicator whose ranks are threads of one process."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from edgeflow_mpi.cluster.comm import PointToPoint, Request
from edgeflow_mpi.errors import EdgeflowError
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, TensorSpec

T = TypeVar("T")


def relu_graph(name: str = "tiny", rows: int = 8) -> Graph:
    """input -> two relus of one shape -> a mean over columns -> output."""
    feature_map = TensorSpec((1, 4, rows, 6), "float32", 2)
    column = TensorSpec((1, 4, rows, 1), "float32", 2)

    def compute(layer: str, producer: str, target: str, out: TensorSpec, **more: Arg) -> Layer:
        step = Step(target, (("self", In(0)), *more.items()), out)
        return Layer(layer, "compute", (producer,), (step,), out, rows, True)

    layers = (
        Layer("x", "input", (), (), feature_map, rows, True),
        compute("a", "x", "aten.relu.default", feature_map),
        compute("b", "a", "aten.relu.default", feature_map),
        compute("c", "b", "aten.mean.dim", column, dim=(3,), keepdim=True),
        Layer("y", "output", ("c",), (), column, rows, True),
    )
    return Graph(name, layers, (), ("y",))


class _Ticket:
    """A request that is done when ``attempt`` first succeeds."""

    def __init__(self, attempt: Callable[[], bool]) -> None:
        self._attempt, self._done = attempt, False

    def Test(self) -> bool:
        self._done = self._done or self._attempt()
        return self._done


class _World:
    def __init__(self, size: int, loses: Callable[[int, int, int], bool]) -> None:
        self.size, self.loses = size, loses
        self.barrier = threading.Barrier(size, timeout=10)
        self.slots: list[Any] = [None] * size
        self.arrivals = [0] * size
        self.mail: defaultdict[tuple[int, int, int], deque[np.ndarray]] = defaultdict(deque)


class ThreadComm:
    """One rank of a communicator whose ranks are threads of this process."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world, self._rank = world, rank

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return self._world.size

    def Ibarrier(self) -> Request:
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

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Request:
        if not self._world.loses(self._rank, dest, tag):
            self._world.mail[self._rank, dest, tag].append(buf.copy())
        return _Ticket(lambda: True)

    def Irecv(self, buf: Any, source: int, tag: int) -> Request:
        box = self._world.mail[source, self._rank, tag]

        def attempt() -> bool:
            if not box:
                return False
            buf[...] = box.popleft()
            return True

        return _Ticket(attempt)


def on_ranks(
    size: int,
    work: Callable[[PointToPoint], T],
    *,
    loses: Callable[[int, int, int], bool] = lambda sender, receiver, tag: False,
) -> list[T | EdgeflowError]:
    """What ``work`` returns, or the EdgeflowError it raises, on each of ``size`` ranks.

    Messages for which ``loses(sender, receiver, tag)`` never arrive.
    """
    world = _World(size, loses)
    outcomes: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(ThreadComm(world, rank))
        except Exception as error:  # noqa: BLE001 (raised again in the test's own thread)
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a rank hangs"
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, EdgeflowError):
            raise outcome
    return outcomes
