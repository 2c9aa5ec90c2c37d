"""One model on one emulated cluster: every partitioner's plan, measured in turn in one job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.policies.grouping import free_memory_bytes, groups
from bench.policies.results import SINGLE, Device, Outcome
from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.errors import ClusterError, PlanError
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.serve import (
    Contender,
    Lateness,
    OpenTransport,
    hand_out_weights,
    lateness,
    measure,
    open_session,
    rank_stats,
)
from edgeflow_mpi.job.setup import (
    Task,
    check_ranks_agree,
    load_task,
    make_profile,
    plan_tables,
    versions,
)
from edgeflow_mpi.model.reference import reference_outputs
from edgeflow_mpi.report.compare import compare_outputs
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.results import RankStats
from edgeflow_mpi.runtime.distribute import needed_weights
from edgeflow_mpi.units.tables import UnitTables

Tensor = torch.Tensor
_BLOCK = 2
"""Requests of one plan before the next has its turn."""
_SINGLE_REPEATS = 2
"""The undivided model takes seconds for each, and always the same."""
_PACKED = 4
"""What kernels make of weights takes up to so many times their memory."""
_SHARE = 0.6
"""Of the free memory, for the plans that are loaded at once."""


@dataclass(frozen=True)
class _Found:
    """What the timed requests of one plan brought; answers on rank 0 only."""

    all_s: tuple[float, ...]
    answer: tuple[Tensor, ...]
    per_rank: tuple[RankStats, ...]
    late: Lateness


def measure_cell(
    context: Context, open_transport: OpenTransport, partitioners: Sequence[str], result: Path
) -> int:
    """Plan with every partitioner and measure all plans in turn; collective.

    Rank 0 writes ``outcomes``, ``refused`` and ``versions`` to ``result``.

    Raises
    ------
    EdgeflowError
        The same on all ranks.
    """
    torch.set_grad_enabled(False)
    hosts = check_ranks_agree(context)
    task = load_task(context)
    if task.emulator is None:
        raise ClusterError("this job is for emulated devices: it needs --emulate")
    profile = make_profile(context, task)

    def plan(name: str) -> UnitTables | str:
        try:
            return plan_tables(context, task, profile, name)
        except PlanError as error:
            return str(error)

    planned = {
        name: broadcast(context.comm, lambda name=name: plan(name), "planning")  # type: ignore[misc]
        for name in partitioners
    }
    tables = {name: found for name, found in planned.items() if not isinstance(found, str)}
    refused = {name: found for name, found in planned.items() if isinstance(found, str)}
    alike = _alike(tables)
    cell = _Cell(context, task, hosts[context.rank], open_transport)
    found = cell.measure({name: tables[name] for name in tables if alike[name] == name})
    with agreed(context.comm, "checking the answers"):
        if context.first:
            outcomes = _outcomes(context, task, tables, alike, found)
            text = json.dumps(
                {
                    "outcomes": [asdict(outcome) for outcome in outcomes],
                    "refused": refused,
                    "versions": versions(context),
                },
                allow_nan=False,
            )
            write_file(result, "the result", lambda file: file.write(text.encode()))
    return 0


def _alike(tables: Mapping[str, UnitTables]) -> dict[str, str]:
    """For every partitioner the first that has the same units."""
    first: dict[str, str] = {}
    for name, mine in tables.items():
        bare = replace(mine, partitioner=name, predicted_s=0.0)
        same = (n for n in first if replace(tables[n], partitioner=name, predicted_s=0.0) == bare)
        first[name] = next(same, name)
    return first


class _Cell:
    """The sessions of one cell, on this rank."""

    def __init__(
        self, context: Context, task: Task, host: str, open_transport: OpenTransport
    ) -> None:
        self._context = context
        self._task = task
        self._host = host
        self._open_transport = open_transport
        self._had: UnitTables | None = None
        self._held: dict[str, Tensor] = {}

    def measure(self, tables: Mapping[str, UnitTables]) -> dict[str, _Found]:
        """All plans, as many beside each other as fit into memory; collective."""
        context, task = self._context, self._task
        names = [name for name in tables if name != SINGLE]
        sizes_bytes = [_packed_bytes(task, tables[name]) for name in names]
        room_bytes = context.comm.bcast(round(_SHARE * free_memory_bytes()), root=0)
        found: dict[str, list[_Found]] = {}
        for group in groups(sizes_bytes, room_bytes):
            together = {names[index]: tables[names[index]] for index in group}
            for name, one in self._together(context, together).items():
                found.setdefault(name, []).append(one)
        if SINGLE in tables:
            options = context.options
            few = replace(options, repeat=min(_SINGLE_REPEATS, options.repeat), warmup=1)
            alone = self._together(replace(context, options=few), {SINGLE: tables[SINGLE]})
            found[SINGLE] = [alone[SINGLE]]
        return {name: _joined(parts) for name, parts in found.items()}

    def _together(self, context: Context, tables: Mapping[str, UnitTables]) -> dict[str, _Found]:
        task, rank = self._task, context.rank
        sessions = {
            name: open_session(context, task, each, self._weights(each), self._open_transport)
            for name, each in tables.items()
        }
        count = context.options.repeat
        with context.progress.step(f"{count} requests of {', '.join(tables)}"):
            measured = measure(
                context, task, [Contender(session) for session in sessions.values()],
                rounds=-(-count // _BLOCK),
            )  # fmt: skip
        found = {}
        for (name, session), mine in zip(sessions.items(), measured, strict=True):
            stats = rank_stats(context, session, mine, self._host)
            late = lateness(context, session)
            assert late is not None
            answer = mine.answers[0] if rank == 0 else ()
            per_rank = tuple(context.comm.allgather(stats))
            found[name] = _Found(mine.latencies_s, answer, per_rank, late)
            session.close()
        return found

    def _weights(self, tables: UnitTables) -> Mapping[str, Tensor]:
        mine = hand_out_weights(self._context, self._task, tables, self._had, self._held)
        if self._had is None:
            self._had, self._held = tables, mine
        return mine


def _packed_bytes(task: Task, tables: UnitTables) -> int:
    """About what all ranks' kernels for these tables take."""
    graph = task.divided(tables.division).graph
    specs = graph.weight_specs
    names = (name for rank in range(tables.size) for name in needed_weights(graph, tables, rank))
    return _PACKED * sum(specs[name].size_bytes for name in names if name in specs)


def _joined(parts: Sequence[_Found]) -> _Found:
    """One plan's requests in several groups; its ranks as in the first."""
    first = parts[0]
    return replace(first, all_s=tuple(seconds for part in parts for seconds in part.all_s))


def _outcomes(
    context: Context,
    task: Task,
    tables: Mapping[str, UnitTables],
    alike: Mapping[str, str],
    found: Mapping[str, _Found],
) -> list[Outcome]:
    """Rank 0: what was measured, and how right the answers are."""
    assert task.undivided is not None and task.emulator is not None
    with context.progress.step("the undivided model in plain torch, float64"):
        model, tensors = task.undivided(), task.plain(task.requests[0])
        wide = reference_outputs(model, tensors, torch.float64)
        plain = reference_outputs(model, tensors, torch.float32)
    spec = task.emulator.spec
    rates = [
        max((link.bandwidth_bytes_s for (i, _), link in spec.links.items() if i == rank), default=0)
        for rank in range(len(spec.devices))
    ]
    outcomes = []
    for name, other in alike.items():
        one, predicted_s = found[other], tables[name].predicted_s
        assert predicted_s is not None
        answer = compare_outputs(task.graph.output_names, one.answer, wide, plain)
        outcomes.append(
            Outcome(
                name, predicted_s * 1e3, tuple(s * 1e3 for s in one.all_s),
                tuple(
                    Device(
                        spec.devices[stats.rank].flops / 1e9, stats.compute_ms, stats.wait_ms,
                        stats.bytes_sent / rates[stats.rank] * 1e3 if rates[stats.rank] else 0.0,
                        stats.bytes_sent, stats.messages_sent, stats.rows,
                    )
                    for stats in one.per_rank
                ),
                one.late.late, one.late.on_time,
                answer.max_rel_err if answer.passed else max(answer.max_rel_err, 1.0),
                answer.tolerance, None if other == name else other,
            )
        )  # fmt: skip
    return outcomes
