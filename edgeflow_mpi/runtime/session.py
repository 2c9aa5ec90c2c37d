"""One plan, ready to answer requests on this rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.runtime.executor import Executor
from edgeflow_mpi.runtime.pace import Pace
from edgeflow_mpi.runtime.transport import Transport
from edgeflow_mpi.runtime.waiting import WaitPolicy, run_request
from edgeflow_mpi.units.tables import Transfer, UnitTables

Tensor = torch.Tensor


@dataclass(frozen=True)
class Answer:
    """Outputs in the model's order (empty on ranks other than 0), and the time they took."""

    outputs: tuple[Tensor, ...]
    latency_s: float


class Session:
    """An executor of ``tables`` on this rank, and what belongs to it.

    Parameters
    ----------
    graph, needs, tables : the same on every rank; the tables are verified.
    rank : this rank.
    weights : the weights that this rank's units name.
    transport : channels of its own.
    policy : how to wait.
    dropped : see :class:`Executor`.
    keep, pace : see :class:`Executor`.
    """

    def __init__(
        self,
        graph: Graph,
        needs: Needs,
        tables: UnitTables,
        rank: int,
        weights: Mapping[str, Tensor],
        transport: Transport,
        policy: WaitPolicy,
        *,
        keep: bool = False,
        dropped: Transfer | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.graph = graph
        self.tables = tables
        self.rank = rank
        self.executor = Executor(
            graph, needs, tables.ranks[rank], weights, transport,
            keep=keep, dropped=dropped, pace=pace,
        )  # fmt: skip
        self.pace = pace
        self._policy = policy

    def run(self, tensors: Sequence[Tensor]) -> Answer:
        """Answer one request; ``tensors`` are the model's inputs on rank 0, else nothing.

        Raises
        ------
        RuntimeFailure
            If a unit fails here, or nothing arrives for too long.
        """
        names = [layer.name for layer in self.graph.inputs]
        request = dict(zip(names, tensors, strict=True)) if self.rank == 0 else {}
        latency_s = run_request(self.executor, request, self._policy)
        found = self.executor.outputs()
        outputs = tuple(found[layer.name] for layer in self.graph.outputs if layer.name in found)
        return Answer(outputs, latency_s)

    def close(self) -> None:
        self.executor.close()


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
