"""One model on one emulated cluster: every partitioner's plan, measured in turn in one job."""

from __future__ import annotations

import fcntl
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.policies.grouping import free_memory_bytes, groups
from bench.policies.results import Device, Outcome
from bench.policies.undivided import undivided_answers
from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.errors import ClusterError, PlanError
from edgeflow_mpi.graph.local import part_spec
from edgeflow_mpi.graph.needs import Needs
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
    warm_up,
)
from edgeflow_mpi.job.setup import (
    Task,
    check_ranks_agree,
    load_task,
    make_profile,
    plan_tables,
    versions,
)
from edgeflow_mpi.partition.graphs import graph_for
from edgeflow_mpi.report.compare import compare_outputs
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.results import RankStats
from edgeflow_mpi.runtime.distribute import needed_weights
from edgeflow_mpi.runtime.session import Session
from edgeflow_mpi.runtime.urgency import urgent
from edgeflow_mpi.units.tables import UnitTables

Tensor = torch.Tensor
_STEADY = 0.02
"""Requests of a plan that differ by less need not be repeated."""
_MOST_TURNS = 3
_PACKED = 5
"""Filters, and what kernels make of them, take up to so many times their memory; other weights
twice theirs."""
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
    context: Context,
    open_transport: OpenTransport,
    partitioners: Sequence[str],
    result: Path,
    turns: Path | None = None,
) -> int:
    """Plan with every partitioner and measure all plans in turn; collective.

    Rank 0 writes ``outcomes``, ``refused`` and ``versions`` to ``result``. ``turns`` is a file
    that who measures requests locks, for jobs on several testbeds of one machine.

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
            return plan_tables(context, _task_of(task, name), profile, name)
        except PlanError as error:
            return str(error)

    planned = {
        name: broadcast(context.comm, lambda name=name: plan(name), "planning")  # type: ignore[misc]
        for name in partitioners
    }
    tables = {name: found for name, found in planned.items() if not isinstance(found, str)}
    refused = {name: found for name, found in planned.items() if isinstance(found, str)}
    alike = _alike(tables)
    cell = _Cell(context, task, hosts[context.rank], open_transport, turns)
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


def _task_of(task: Task, partitioner: str) -> Task:
    """The task on the graph that the partitioner plans."""
    graph = graph_for(partitioner, task.graph)
    if graph is task.graph:
        return task
    needs = Needs(graph)
    emulator = None if task.emulator is None else task.emulator.on(graph, needs)
    return replace(task, graph=graph, needs=needs, emulator=emulator)


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
        self,
        context: Context,
        task: Task,
        host: str,
        open_transport: OpenTransport,
        turns: Path | None,
    ) -> None:
        self._turns = turns
        self._context = context
        self._task = task
        self._host = host
        self._open_transport = open_transport
        self._had: UnitTables | None = None
        self._held: dict[str, Tensor] = {}

    def measure(self, tables: Mapping[str, UnitTables]) -> dict[str, _Found]:
        """All plans, as many beside each other as fit into memory; collective."""
        self._learn_prices(tables)
        names = list(tables)
        sizes_bytes = _packed_bytes(self._task, tables)
        room_bytes = self._context.comm.bcast(round(_SHARE * free_memory_bytes()), root=0)
        found: dict[str, list[_Found]] = {}
        for group in groups(sizes_bytes, room_bytes):
            together = {names[index]: tables[names[index]] for index in group}
            for name, one in self._together(together).items():
                found.setdefault(name, []).append(one)
        return {name: _joined(parts) for name, parts in found.items()}

    def _learn_prices(self, tables: Mapping[str, UnitTables]) -> None:
        """Measure what kernels of these plans take, where that is not known; collective.

        Nothing else runs on the cores meanwhile, neither requests on other testbeds nor who gets
        them ready: a kernel that shares a core and its caches took several times as long.
        """
        context = self._context
        # Rank 0 measures; the others look now and then whether it has.
        first = urgent() if context.first else nullcontext()
        with _turn(context, self._turns), first:
            for name, each in tables.items():
                task = _task_of(self._task, name).divided(each.division)
                assert task.emulator is not None
                units = [
                    (unit.layer, unit.rows.rows)
                    for own in each.ranks
                    for unit in own
                    if task.graph.by_name[unit.layer].kind == "compute"
                ]
                task.emulator.learn(context.comm, context.progress, units)

    def _together(self, tables: Mapping[str, UnitTables]) -> dict[str, _Found]:
        context = self._context
        sessions = {name: self._open(name, each) for name, each in tables.items()}
        contenders = {name: Contender(session) for name, session in sessions.items()}
        with context.progress.step(f"the units of {', '.join(tables)} computed"):
            warm_up(context, self._task, list(contenders.values()))
        found: dict[str, list[_Found]] = {name: [] for name in tables}
        doing = context.progress.step(f"requests of {', '.join(tables)}")
        with _turn(context, self._turns), _no_garbage(), doing:
            for _ in range(_MOST_TURNS):
                restless = context.comm.bcast(
                    [name for name in tables if not _steady(found[name])], root=0
                )
                for name, one in self._requests({n: contenders[n] for n in restless}).items():
                    found[name].append(one)
        for session in sessions.values():
            session.close()
        return {name: _joined(parts) for name, parts in found.items()}

    def _open(self, name: str, tables: UnitTables) -> Session:
        context, task = self._context, _task_of(self._task, name)
        mine = hand_out_weights(context, task, tables, self._had, self._held)
        if self._had is None and task is self._task:
            self._had, self._held = tables, mine
        return open_session(context, task, tables, mine, self._open_transport)

    def _settle(self, contender: Contender) -> None:
        """A request that counts nowhere: for half a second after other work ranks are late."""
        context, pace = self._context, contender.session.pace
        assert pace is not None
        counted = pace.wanted_s, pace.late_s, pace.units, pace.on_time
        once = replace(context, options=replace(context.options, repeat=1, warmup=0))
        measure(once, self._task, [contender], rounds=1)
        pace.wanted_s, pace.late_s, pace.units, pace.on_time = counted

    def _requests(self, contenders: Mapping[str, Contender]) -> dict[str, _Found]:
        """As many timed requests of each as the options say, and what they brought."""
        if not contenders:
            return {}
        context, task = self._context, self._task
        warm = replace(context, options=replace(context.options, warmup=0))
        self._settle(next(iter(contenders.values())))
        # One request a turn: the next would begin while others still send what this one left.
        measured = measure(warm, task, list(contenders.values()), rounds=context.options.repeat)
        found = {}
        for (name, contender), mine in zip(contenders.items(), measured, strict=True):
            stats = rank_stats(context, contender.session, mine, self._host)
            late = lateness(context, contender.session)
            assert late is not None
            answer = mine.answers[0] if context.first else ()
            per_rank = tuple(context.comm.allgather(stats))
            found[name] = _Found(mine.latencies_s, answer, per_rank, late)
        return found


@contextmanager
def _turn(context: Context, turns: Path | None) -> Iterator[None]:
    """While no other testbed of this machine measures requests; collective."""
    if turns is None:
        yield
        return
    with turns.open("a") as file:
        with agreed(context.comm, "waiting for the turn"):
            if context.first:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closed, it is unlocked


@contextmanager
def _no_garbage() -> Iterator[None]:
    """While no garbage is collected: the tables of all plans take a tenth of a second to walk."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _steady(found: Sequence[_Found]) -> bool:
    """Whether the requests so far are alike; on rank 0."""
    all_s = [seconds for one in found for seconds in one.all_s]
    return bool(all_s) and max(all_s) <= (1 + _STEADY) * min(all_s)


def _packed_bytes(task: Task, plans: Mapping[str, UnitTables]) -> list[int]:
    """About what all ranks' kernels take: for the first plan, and for others what it has not."""
    sizes: list[int] = []
    first: set[tuple[int, str]] = set()
    for name, tables in plans.items():
        graph = _task_of(task, name).divided(tables.division).graph
        wanted = {
            (rank, key): part_spec(graph, key, part)
            for rank in range(tables.size)
            for key, part in needed_weights(graph, tables, rank).items()
        }
        sizes.append(sum(
            spec.size_bytes * (_PACKED if len(spec.shape) == 4 else 2)
            for key, spec in wanted.items()
            if key not in first
        ))  # fmt: skip
        first = first or set(wanted)
    return sizes


def _joined(parts: Sequence[_Found]) -> _Found:
    """One plan's requests of several turns; its ranks as in the first, late as in all."""
    all_s = tuple(seconds for part in parts for seconds in part.all_s)
    return replace(parts[0], all_s=all_s, late=parts[-1].late)


def _outcomes(
    context: Context,
    task: Task,
    tables: Mapping[str, UnitTables],
    alike: Mapping[str, str],
    found: Mapping[str, _Found],
) -> list[Outcome]:
    """Rank 0: what was measured, and how right the answers are."""
    assert task.emulator is not None
    wide, plain = undivided_answers(context, task)
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
