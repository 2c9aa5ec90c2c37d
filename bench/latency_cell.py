"""All partitioners of one model on one number of ranks, measured in turn in one job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.errors import EdgeflowError
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.main import make_report
from edgeflow_mpi.job.serve import (
    Contender,
    Measured,
    OpenTransport,
    fastest,
    hand_out_weights,
    measure,
    open_session,
    rank_stats,
    single_device_contenders,
    single_rank,
)
from edgeflow_mpi.job.setup import (
    Task,
    check_ranks_agree,
    load_task,
    make_profile,
    plan_tables,
)
from edgeflow_mpi.model.reference import reference_outputs
from edgeflow_mpi.report.compare import compare_outputs
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.results import Latency, SingleDevice, Verification, to_json
from edgeflow_mpi.runtime.session import Session
from edgeflow_mpi.units.tables import UnitTables

Tensor = torch.Tensor
BLOCK = 5
"""Requests of one session before the next one has its turn."""


def measure_cell(
    context: Context, open_transport: OpenTransport, partitioners: Sequence[str], results: Path
) -> int:
    """Plan with every partitioner, measure all plans and the single device in turn; collective.

    Rank 0 writes a list to ``results``: for each partitioner what ``--json`` writes for a run.

    Raises
    ------
    EdgeflowError
        The same on all ranks, also when an answer is wrong: its latency would mean nothing.
    """
    torch.set_grad_enabled(False)
    hosts = check_ranks_agree(context)
    task = load_task(context)
    profile = make_profile(context, task)
    weights = _Weights(context, task)

    def planned(name: str) -> tuple[Context, UnitTables, Mapping[str, Tensor]]:
        # A context of its own, so that the stages of one plan do not count for another.
        own = replace(context, timings_s=dict(context.timings_s))
        tables = broadcast(context.comm, lambda: plan_tables(own, task, profile, name))
        return own, tables, weights.of(own, tables)

    def ready(name: str) -> _Ready:
        own, tables, held = planned(name)
        return _Ready(own, tables, open_session(own, task, tables, held, open_transport))

    plans = [ready(name) for name in partitioners]
    own, alone, held = planned("single")
    device = single_rank(task.graph, alone)
    contenders = [Contender(plan.session) for plan in plans]
    contenders += single_device_contenders(
        context, device, lambda: open_session(own, task, alone, held, open_transport)
    )
    measured = measure(context, task, contenders, rounds=-(-context.options.repeat // BLOCK))
    ours, theirs = measured[: len(plans)], measured[len(plans) :]
    per_rank = [
        context.comm.gather(
            rank_stats(context, plan.session, measured, hosts[context.rank]), root=0
        )
        for plan, measured in zip(plans, ours, strict=True)
    ]
    with agreed(context.comm):
        if context.first:
            single = SingleDevice(_latency(fastest(theirs)).median_ms, device)
            checked = _verified(context, task, partitioners, ours)
            found = [
                to_json(
                    make_report(plan.context, task, plan.tables, measured, ranks, single, right)
                )
                for plan, measured, ranks, right in zip(plans, ours, per_rank, checked, strict=True)
            ]
            text = json.dumps(found, allow_nan=False)
            write_file(results, "the results", lambda file: file.write(text.encode()))
    return 0


@dataclass(frozen=True)
class _Ready:
    """A plan that can answer requests."""

    context: Context
    tables: UnitTables
    session: Session


class _Weights:
    """Weights of this rank, for one plan after the other; what is here does not come again."""

    def __init__(self, context: Context, task: Task) -> None:
        self._task = task
        self._first: UnitTables | None = None
        self._held: dict[str, Tensor] = {}
        self._rank = context.rank

    def of(self, context: Context, tables: UnitTables) -> Mapping[str, Tensor]:
        """The weights for ``tables``; collective."""
        found = hand_out_weights(context, self._task, tables, self._first, self._held)
        self._first = self._first or tables
        self._held |= found
        return found


def _latency(measured: Measured) -> Latency:
    return Latency(tuple(value * 1e3 for value in measured.latencies_s))


def _verified(
    context: Context, task: Task, partitioners: Sequence[str], measured: Sequence[Measured]
) -> list[Verification]:
    """Rank 0: the first answer under every partitioner against plain torch in float64."""
    assert task.undivided is not None
    model, tensors = task.undivided(), task.plain(task.requests[0])
    with context.progress.step("the undivided model in plain torch, float64"):
        wide = reference_outputs(model, tensors, torch.float64)
        plain = reference_outputs(model, tensors, torch.float32)
    found = []
    for name, each in zip(partitioners, measured, strict=True):
        answer = compare_outputs(task.graph.output_names, each.answers[0], wide, plain)
        if not answer.passed:
            raise EdgeflowError(
                f"the answer under partitioner {name} is wrong: off by {answer.max_rel_err:.1e} "
                f"of its largest value, where {answer.tolerance:.1e} is allowed"
            )
        found.append(answer)
    return found
