"""Comparison with the undivided model: of the answers, and of every layer on the way."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgeflow_mpi.cluster.agree import agreed
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.graph.wire import WIRE_DTYPES
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.serve import Measured
from edgeflow_mpi.job.setup import Task
from edgeflow_mpi.kernels.names import NARROW
from edgeflow_mpi.report.compare import combine, compare_layers, compare_outputs
from edgeflow_mpi.report.results import LayerComparison, Verification
from edgeflow_mpi.runtime.session import Session
from edgeflow_mpi.units.tables import UnitTables

Tensor = torch.Tensor


def verify_answers(
    context: Context, task: Task, tables: UnitTables, measured: Measured
) -> Verification:
    """Rank 0 only: every request's outputs against plain torch in float64."""
    # Late, as in other places here: most jobs do not ask.
    from edgeflow_mpi.model.reference import reference_outputs

    assert task.undivided is not None
    model, found, rounded = task.undivided(), [], _narrowest(context, tables)
    for i, (request, outputs) in enumerate(zip(task.requests, measured.answers, strict=True)):
        context.progress.update(f"request {i + 1} of {len(task.requests)} in float64")
        tensors = task.plain(request)
        wide = reference_outputs(model, tensors, torch.float64)
        plain = reference_outputs(model, tensors, torch.float32)
        others = [other for which, other in measured.deviations if which == i]
        compared = [
            compare_outputs(task.graph.output_names, answer, wide, plain, rounded)
            for answer in (outputs, *others)
        ]
        found.append(replace(combine(compared), requests=1))
    return combine(found)


def verify_layers(context: Context, task: Task, session: Session) -> LayerComparison | None:
    """Run the first request keeping every tensor, and compare each layer; collective.

    The comparison is made on rank 0; None on other ranks.
    """
    with agreed(context.comm):
        pass  # the ranks start together
    session.run(task.requests[0].tensors if context.first else ())
    context.pulse.wait_for_all()
    got = _gather_layers(context, session.graph, session)
    comparison: LayerComparison | None = None
    with agreed(context.comm, "comparing the layers"):
        if context.first:
            from edgeflow_mpi.model.reference import reference_layers

            assert task.undivided is not None
            tensors, program = task.plain(task.requests[0]), task.undivided().program
            # Operators that were written out in parts have layers that plain torch does not.
            nodes = {node.name for node in program.graph.nodes}
            names = [name for name in got if name in nodes]
            wide = reference_layers(program, tensors, torch.float64, names)
            plain = reference_layers(program, tensors, torch.float32, names)
            rounded = _narrowest(context, session.tables)
            comparison = compare_layers(list(got), got, wide, plain, rounded)
    return comparison


def _narrowest(context: Context, tables: UnitTables) -> torch.dtype:
    """The type to which float32 activations were rounded, on their way or to be multiplied."""
    if any(NARROW.get(unit.engine) == "bf16" for units in tables.ranks for unit in units):
        return torch.bfloat16
    found: torch.dtype = getattr(torch, WIRE_DTYPES[context.options.wire] or "float32")
    return found


def _gather_layers(context: Context, graph: Graph, session: Session) -> dict[str, Tensor]:
    """Every layer's whole tensor on rank 0, put together from the rows that ranks own."""
    got: dict[str, Tensor] = {}
    for layer in graph.layers:
        if layer.kind != "compute" or layer.combine:
            continue
        mine = session.executor.storage.owned(layer.name)
        # A copy, because a view would be pickled with all the memory behind it.
        piece = None if mine is None else mine.clone(memory_format=torch.contiguous_format)
        pieces = context.comm.gather(piece, root=0)
        if pieces is not None:
            tensors = [part for part in pieces if part is not None]
            axis = layer.out.axis
            got[layer.name] = tensors[0] if axis is None else torch.cat(tensors, dim=axis)
    return got


def with_layers(verification: Verification, comparison: LayerComparison | None) -> Verification:
    """The verification of answers, with that of layers beside it."""
    return replace(verification, layers=comparison)
