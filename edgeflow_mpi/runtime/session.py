"""One plan, ready to answer requests on this rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.runtime.executor import Clock, Executor
from edgeflow_mpi.runtime.meter import Meter
from edgeflow_mpi.runtime.pace import Pace
from edgeflow_mpi.runtime.pipeline import Pipeline
from edgeflow_mpi.runtime.transport import Transport
from edgeflow_mpi.runtime.urgency import urgent
from edgeflow_mpi.runtime.waiting import WaitPolicy
from edgeflow_mpi.units.memory import DeviceMemory, tables_memory
from edgeflow_mpi.units.tables import Transfer, UnitTables

Tensor = torch.Tensor


@dataclass(frozen=True)
class Answer:
    """Outputs in the model's order (empty on ranks other than 0), and the time they took."""

    outputs: tuple[Tensor, ...]
    latency_s: float


class Session:
    """Executors of ``tables`` on this rank, one for each request under way at once.

    Parameters
    ----------
    graph, needs, tables : the same on every rank; the tables are verified.
    rank : this rank.
    weights : the weights that this rank's units name.
    transports : channels of its own, once for each request that may be under way at once.
    policy : how to wait.
    metered : take down what the time of every unit is spent on.
    dropped : see :class:`Executor`.
    keep, pace : see :class:`Executor`.

    Attributes
    ----------
    executor : the first of them.
    policy : how they wait.
    meter : where the time goes, if it is ``metered``.
    """

    def __init__(
        self,
        graph: Graph,
        needs: Needs,
        tables: UnitTables,
        rank: int,
        weights: Mapping[str, Tensor],
        transports: Sequence[Transport],
        policy: WaitPolicy,
        *,
        metered: bool = False,
        keep: bool = False,
        dropped: Transfer | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.graph = graph
        self.tables = tables
        self.rank = rank
        self.pace, self.policy = pace, policy
        self.meter = Meter(len(tables.ranks[rank])) if metered else None
        self._executors: list[Executor] = []
        # With several requests under way there may be something to do for another.
        patience_s = policy.patience_s if len(transports) == 1 else 0.0
        for transport in transports:
            executor = Executor(
                graph, needs, tables, rank, weights, transport,
                keep=keep, dropped=dropped, pace=pace, shares=next(iter(self._executors), None),
                meter=self.meter, patience_s=patience_s,
            )  # fmt: skip
            self._executors.append(executor)
        self._weights_bytes = sum(w.numel() * w.element_size() for w in weights.values())
        self._pipeline = Pipeline(self._executors, policy, self.meter)

    @property
    def executor(self) -> Executor:
        return self._executors[0]

    @property
    def clock(self) -> Clock:
        """Computing and waiting time of this rank."""
        return self.executor.clock

    @property
    def in_flight(self) -> int:
        return len(self._executors)

    @property
    def held_bytes(self) -> int:
        """Weights, what engines keep of them, and the memory of tensors, as they were allocated."""
        arenas = sum(executor.storage.memory.numel() for executor in self._executors)
        return self._weights_bytes + self.executor.kept_bytes + arenas

    @property
    def planned(self) -> DeviceMemory:
        """What the plan said that this rank needs."""
        (found,) = tables_memory(self.graph, self.tables, [self.rank])
        return found.for_requests(self.in_flight)

    def run(self, tensors: Sequence[Tensor]) -> Answer:
        """Answer one request; ``tensors`` are the model's inputs on rank 0, else nothing.

        Raises
        ------
        RuntimeFailure
            If a unit fails here, or nothing arrives for too long.
        """
        (answer,) = self.run_all([tensors])
        return answer

    def run_all(self, requests: Sequence[Sequence[Tensor]]) -> Iterator[Answer]:
        """Answer requests, as many under way at once as there are executors, in their order.

        To be exhausted. Raises as :meth:`run` does.
        """
        names = [layer.name for layer in self.graph.inputs] if self.rank == 0 else []
        named = [dict(zip(names, tensors, strict=True)) for tensors in requests]
        if self.pace is not None:
            self.pace.begin()
        # Ranks that stand for devices share the cores, which devices do not.
        with urgent() if self.pace is not None and self.pace.counts else nullcontext():
            for finished in self._pipeline.run(named):
                found = finished.outputs
                outputs = tuple(found[out.name] for out in self.graph.outputs if out.name in found)
                yield Answer(outputs, finished.latency_s)

    def close(self) -> None:
        for executor in self._executors:
            executor.close()


def choose_fault(tables: UnitTables, graph: Graph, layer: str) -> Transfer:
    """A transfer of halo rows into ``layer`` (or, for ``any``, into a middle layer).

    Raises
    ------
    InputError
        If that layer receives none; the sentence names some that do.
    """
    transfers = sorted(
        {
            transfer
            for units in tables.ranks
            for unit in units
            for need in unit.requirements
            # Rows beside others that are computed here or come from elsewhere: a halo.
            if need.rows.rows > 1 and graph.by_name[unit.layer].kind == "compute"
            for transfer in need.transfers
            if transfer.consumer == unit.layer
            and graph.by_name[transfer.producer].out.rows > 1
            and not graph.by_name[transfer.producer].combine
        },
        key=lambda t: (t.tag, t.source, t.dest),
    )
    chosen = [t for t in transfers if t.consumer == layer]
    if layer == "any" and transfers:
        chosen = [transfers[len(transfers) // 2]]
    if not chosen:
        names = list(dict.fromkeys(t.consumer for t in transfers))
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(
            f"no fault can be planted in layer {layer!r}: under this plan it receives no rows "
            + (f"(layers that do: {some})" if names else "(no layer does)")
        )
    return chosen[0]
