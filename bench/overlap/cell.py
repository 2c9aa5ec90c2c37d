"""One model in one setting: several plans, each with overlap and without, in turn in one job."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from bench.overlap.account import Account, Seen, Share, Wire, account, worked_s
from bench.overlap.idle_link import idle_link
from bench.overlap.observed import Observed
from bench.overlap.replay import replay_s
from bench.overlap.results import Plan
from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.serve import (
    OpenTransport,
    hand_out_weights,
    lateness,
    open_session,
)
from edgeflow_mpi.job.setup import Task, check_ranks_agree, load_task, make_profile, plan_tables
from edgeflow_mpi.partition.flow import transfer_bytes
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.runtime.session import Session
from edgeflow_mpi.spans import EMPTY, Span
from edgeflow_mpi.units.tables import Requirement, Transfer, Unit, UnitTables, units_by_layer
from edgeflow_mpi.units.verify import verify_tables

_BLOCK = 3
"""Requests of one kind before the next kind has its turn."""
_NOTHING = Wire(0.0, 0.0)
WHOLE = " in one piece"
"""Ends the name of a plan whose boundary rows do not go first."""


@dataclass
class _Entry:
    """A plan that is measured, on this rank, and what was seen of it (on rank 0)."""

    name: str
    tables: UnitTables
    session: Session
    transport: Observed
    wire: Callable[[Transfer], Wire]
    latencies_s: list[float] = field(default_factory=list)
    blocking_s: list[float] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    busy_s: list[list[list[float]]] = field(default_factory=list)


def measure_case(
    context: Context, open_transport: OpenTransport, partitioners: Sequence[str], result: Path
) -> int:
    """Measure the plans of all ``partitioners`` in turn; collective. Rank 0 writes the result.

    Raises
    ------
    EdgeflowError
        The same on all ranks.
    """
    torch.set_grad_enabled(False)
    check_ranks_agree(context)
    task = load_task(context)
    profile = make_profile(context, task)
    links = context.comm.bcast(None if profile is None else profile.links, root=0)
    if links and not context.options.profile_from_cluster:
        links = dict.fromkeys(links, idle_link(context, open_transport))

    def plan(name: str) -> dict[str, UnitTables]:
        tables = plan_tables(context, task, profile, name)
        merged = in_one_piece(tables)
        if merged == tables:
            return {name: tables}
        own = task.divided(tables.division)
        verify_tables(own.graph, own.needs, merged, tag_limit=context.tag_limit)
        return {name: tables, name + WHOLE: merged}

    planned: dict[str, UnitTables] = {}
    for name in partitioners:
        planned |= broadcast(context.comm, lambda name=name: plan(name), "planning")  # type: ignore[misc]
    entries = [
        _open(context, task, name, tables, links, open_transport)
        for name, tables in planned.items()
    ]
    options = context.options
    tensors = task.requests[0].tensors if context.first else ()
    for entry in entries:
        for _ in range(options.warmup):
            _turn(context, entry, tensors, counts=False)
    with context.progress.step(f"{options.repeat} requests of {', '.join(planned)}"):
        for _ in range(-(-options.repeat // _BLOCK)):
            for entry in entries:
                for blocking in (False, True):
                    entry.transport.blocking = blocking
                    for _ in range(_BLOCK):
                        _turn(context, entry, tensors)
                    entry.transport.blocking = False
    found = [_plan_of(context, task, entry) for entry in entries]
    for entry in entries:
        entry.session.close()
    with agreed(context.comm):
        if context.first:
            text = json.dumps([asdict(one) for one in found])
            write_file(result, "the result", lambda file: file.write(text.encode()))
    return 0


def _open(
    context: Context, task: Task, name: str, tables: UnitTables,
    links: Mapping[tuple[int, int], Link], open_transport: OpenTransport,
) -> _Entry:  # fmt: skip
    wire = wire_of(task.divided(tables.division).graph, links)
    observed: list[Observed] = []

    def open_observed() -> Observed:
        observed.append(Observed(open_transport(), wire, context.options.timeout_s))
        return observed[-1]

    weights = hand_out_weights(context, task, tables, None, {})
    session = open_session(context, task, tables, weights, open_observed, wait=context.options.wait)
    observed[0].rest = session.executor.rest
    return _Entry(name, tables, session, observed[0], wire)


def wire_of(graph: Graph, links: Mapping[tuple[int, int], Link]) -> Callable[[Transfer], Wire]:
    """What its link makes of a message."""
    found: dict[Transfer, Wire] = {}

    def wire(transfer: Transfer) -> Wire:
        if transfer not in found:
            link = links[transfer.source, transfer.dest]
            size_bytes = transfer_bytes(graph.by_name[transfer.producer], transfer.rows)
            found[transfer] = Wire(link.latency_s, size_bytes / link.bandwidth_bytes_s)
        return found[transfer]

    return wire


def _turn(
    context: Context, entry: _Entry, tensors: Sequence[torch.Tensor], *, counts: bool = True
) -> None:
    """One request; collective."""
    entry.transport.forget()
    # What blocks on purpose says nothing about how exactly units end.
    if entry.session.pace is not None:
        entry.session.pace.counts = counts and not entry.transport.blocking
    with agreed(context.comm):
        pass  # all begin together
    latency_s = entry.session.run(tensors).latency_s
    context.pulse.wait_for_all()
    if not counts:
        return
    if entry.transport.blocking:
        entry.blocking_s.append(latency_s)
        return
    units = tuple((start_s, end_s) for _, start_s, end_s in entry.session.executor.trace())
    mine = Seen(units, entry.transport.sent, entry.transport.noticed)
    ranks = context.comm.gather(mine, root=0)
    if ranks is not None:
        inputs = frozenset(layer.name for layer in entry.session.graph.inputs)
        entry.latencies_s.append(latency_s)
        entry.accounts.append(account(entry.tables, ranks, entry.wire, inputs))
        entry.busy_s.append(
            [worked_s(u, seen) for u, seen in zip(entry.tables.ranks, ranks, strict=True)]
        )


def _plan_of(context: Context, task: Task, entry: _Entry) -> Plan:
    """What was found, on rank 0; nothing elsewhere. Collective."""
    late = lateness(context, entry.session)
    if not context.first:
        return Plan.nothing()
    busy_s = [
        [statistics.median(times) for times in zip(*requests, strict=True)]
        for requests in zip(*entry.busy_s, strict=True)
    ]
    graph = entry.session.graph
    sent = [t for units in entry.tables.ranks for unit in units for t in unit.forwards]
    return Plan(
        name=entry.name,
        latency_ms=_ms(entry.latencies_s),
        blocking_ms=_ms(entry.blocking_s),
        hidden_ms=1e3 * replay_s(entry.tables, busy_s, lambda _: _NOTHING),
        linked_ms=1e3 * replay_s(entry.tables, busy_s, entry.wire),
        linked_blocking_ms=1e3 * replay_s(entry.tables, busy_s, entry.wire, "blocking"),
        total=_median([one.total for one in entry.accounts]),
        inner=_median([one.inner for one in entry.accounts]),
        messages=len(sent),
        bytes_sent=sum(transfer_bytes(graph.by_name[t.producer], t.rows) for t in sent),
        late=0.0 if late is None else late.late,
    )


def _ms(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(1e3 * value for value in seconds)


def _median(shares: Sequence[Share]) -> Share:
    """Medians over requests."""
    names = ("transfer_s", "computed_s", "exposed_s", "late_s")
    return Share(*(statistics.median(getattr(s, name) for s in shares) for name in names))


def in_one_piece(tables: UnitTables) -> UnitTables:
    """The same plan without boundary rows first: one unit for each layer and rank."""
    ranks = tuple(
        tuple(
            replace(_merged(pieces), index=index)
            for index, pieces in enumerate(units_by_layer(units).values())
        )
        for units in tables.ranks
    )
    return replace(tables, ranks=ranks)


def _merged(pieces: Sequence[Unit]) -> Unit:
    first = pieces[0]
    if len(pieces) == 1:
        return first
    needs = [
        Requirement(
            same[0].producer,
            _hull([need.rows for need in same]),
            tuple(dict.fromkeys(t for need in same for t in need.transfers)),
        )
        for same in zip(*(piece.requirements for piece in pieces), strict=True)
    ]
    forwards = tuple(transfer for piece in pieces for transfer in piece.forwards)
    return replace(
        first,
        rows=_hull([piece.rows for piece in pieces]),
        owned=_hull([piece.owned for piece in pieces]),
        requirements=tuple(needs),
        forwards=forwards,
    )


def _hull(spans: Sequence[Span]) -> Span:
    held = [span for span in spans if span]
    if not held:
        return EMPTY
    return Span(min(span.start for span in held), max(span.stop for span in held))
