"""Comparison with the undivided model: of the answers, and of every layer on the way."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgeflow_mpi.cluster.agree import agreed
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.setup import Task
from edgeflow_mpi.model.reference import reference_layers, reference_outputs
from edgeflow_mpi.report.compare import combine, compare_layers, compare_outputs
from edgeflow_mpi.report.results import LayerComparison, Verification
from edgeflow_mpi.runtime.session import Session

Tensor = torch.Tensor


def verify_answers(
    context: Context, task: Task, answers: tuple[tuple[Tensor, ...], ...]
) -> Verification:
    """Rank 0 only: every request's outputs against plain torch in float64."""
    assert task.model is not None
    found = []
    for i, (request, outputs) in enumerate(zip(task.requests, answers, strict=True)):
        context.progress.update(f"request {i + 1} of {len(answers)} in float64")
        tensors = task.plain(request)
        wide = reference_outputs(task.model, tensors, torch.float64)
        plain = reference_outputs(task.model, tensors, torch.float32)
        found.append(compare_outputs(task.graph.output_names, outputs, wide, plain))
    return combine(found)


def verify_layers(context: Context, task: Task, session: Session) -> LayerComparison | None:
    """Run the first request keeping every tensor, and compare each layer; collective.

    The comparison is made on rank 0; None on other ranks.
    """
    with agreed(context.comm):
        pass
    session.run(task.requests[0].tensors if context.first else ())
    got = _gather_layers(context, task.graph, session)
    comparison: LayerComparison | None = None
    with agreed(context.comm):
        if context.first:
            assert task.model is not None
            tensors, names = task.plain(task.requests[0]), list(got)
            program = task.model.program
            wide = reference_layers(program, tensors, torch.float64, names)
            plain = reference_layers(program, tensors, torch.float32, names)
            comparison = compare_layers(names, got, wide, plain)
    return comparison


def _gather_layers(context: Context, graph: Graph, session: Session) -> dict[str, Tensor]:
    """Every layer's whole tensor on rank 0, put together from the rows that ranks own."""
    got: dict[str, Tensor] = {}
    for layer in graph.layers:
        if layer.kind != "compute" or layer.combine:
            continue
        mine = session.executor.storage.owned(layer.name)
        piece = None if mine is None else mine.contiguous().numpy()
        pieces = context.comm.gather(piece, root=0)
        if pieces is not None:
            tensors = [torch.from_numpy(part) for part in pieces if part is not None]
            axis = layer.out.axis
            got[layer.name] = tensors[0] if axis is None else torch.cat(tensors, dim=axis)
    return got


def with_layers(verification: Verification, comparison: LayerComparison | None) -> Verification:
    """The verification of answers, with that of layers beside it."""
    return replace(verification, layers=comparison)
