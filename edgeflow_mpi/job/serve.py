"""Answering requests: the plan under test and, beside it, the best single device."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from edgeflow_mpi.cluster.affinity import apply_threads, bind_to
from edgeflow_mpi.cluster.agree import agreed
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.setup import Task
from edgeflow_mpi.job.waiting import describe, wait_policy
from edgeflow_mpi.partition.flow import transfer_bytes
from edgeflow_mpi.report.breakdown import RankTimes, UnitTimes
from edgeflow_mpi.report.engine_use import engine_uses
from edgeflow_mpi.report.results import RankStats
from edgeflow_mpi.runtime.distribute import distribute_weights
from edgeflow_mpi.runtime.listening import Listener
from edgeflow_mpi.runtime.pace import Pace
from edgeflow_mpi.runtime.session import Answer, Session, choose_fault
from edgeflow_mpi.runtime.shared_weights import share_weights
from edgeflow_mpi.runtime.transport import Transport
from edgeflow_mpi.units.dryrun import dry_run_together
from edgeflow_mpi.units.tables import Unit, UnitTables

Tensor = torch.Tensor
_ROUNDS = 4
_DEVIATIONS_KEPT = 3

OpenTransport = Callable[[], Transport]
"""Makes channels over a communicator of their own; collective."""


@dataclass(frozen=True)
class Measured:
    """Timed requests of one session.

    Attributes
    ----------
    latencies_s : tuple of float
        On rank 0 those of the answers.
    served_s : float
        How long all of them took together; less than the sum of the latencies where several
        were under way at once.
    answers : tuple of tuple of torch.Tensor
        On rank 0: for every request the outputs when it was first answered.
    deviations : tuple of (int, tuple of torch.Tensor)
        With ``--verify``, on rank 0: some later answers that are not bit by bit the first one
        to the same request, with the request's position. There should be none.
    compute_s, wait_s : float
        What this rank spent in all of them.
    engines : tuple of (Unit, str)
        This rank's compute units, each with the engine that computes it.
    in_flight : int
        How many were under way at once.
    waiting : str
        How this rank waits for messages.
    """

    latencies_s: tuple[float, ...]
    served_s: float
    answers: tuple[tuple[Tensor, ...], ...]
    deviations: tuple[tuple[int, tuple[Tensor, ...]], ...]
    compute_s: float
    wait_s: float
    engines: tuple[tuple[Unit, str], ...]
    in_flight: int = 1
    waiting: str = ""


def hand_out_weights(
    context: Context,
    task: Task,
    tables: UnitTables,
    had: UnitTables | None,
    mine: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """This rank's weights for ``tables``; what ``had`` brought does not travel again."""
    with context.timed("distribute"), context.progress.step("weights to the ranks that need them"):
        held = task.weights if context.first else mine
        if task.emulator is None:
            found = distribute_weights(
                context.comm, task.graph, tables, held, context.progress, had=had
            )
        else:
            found = share_weights(context.comm, task.graph, tables, held, had=had)
        with agreed(context.comm):
            pass  # every rank has its own before any goes on
    return found


def open_session(
    context: Context,
    task: Task,
    tables: UnitTables,
    weights: Mapping[str, Tensor],
    open_transport: OpenTransport,
    *,
    plant_fault: str | None = None,
    keep: bool = False,
    in_flight: int = 1,
    wait: str = "auto",
    metered: bool = False,
) -> Session:
    """Prepare this rank's units; collective. ``plant_fault`` is for :func:`choose_fault`."""
    task = task.divided(tables.division)
    listener = None if task.emulator is None else Listener(context.comm.Iprobe)
    pace = _make_pace(context, task, tables, listener)
    transports = [open_transport() for _ in range(in_flight)]
    session: Session | None = None
    with agreed(context.comm, "preparing the units"):
        if in_flight > 1 and context.first:
            dry_run_together(tables, in_flight, 2 * in_flight)
        dropped = None
        if plant_fault is not None:
            dropped = choose_fault(tables, task.graph, plant_fault)
            planted = (
                f"planted fault: rank {dropped.dest} loses row {dropped.rows.start} of "
                f"{dropped.producer}, which it receives for {dropped.consumer}"
            )
            if planted not in context.notes:
                context.progress.say(f"  {planted}")
                context.notes.append(planted)
        policy = wait_policy(context, wait, listener=listener)
        session = Session(
            task.graph, task.needs, tables, context.rank, weights, transports, policy,
            metered=metered, keep=keep, dropped=dropped, pace=pace,
        )  # fmt: skip
    assert session is not None
    return session


def _make_pace(
    context: Context, task: Task, tables: UnitTables, listener: Listener | None
) -> Pace | None:
    """What makes this rank's units take as long as on the device it stands for; collective."""
    emulator, rank = task.emulator, context.rank
    if emulator is None:
        return None
    computing = [
        (unit.layer, unit.rows.rows)
        for units in tables.ranks
        for unit in units
        if task.graph.by_name[unit.layer].kind == "compute"
    ]
    emulator.learn(context.comm, context.progress, computing)
    message_s = emulator.spec.devices[rank].message_cpu_s

    def seconds(unit: Unit) -> float:
        taken = {transfer for need in unit.requirements for transfer in need.transfers}
        messages_s = (len(taken) + len(unit.forwards)) * message_s
        if task.graph.by_name[unit.layer].kind != "compute":
            return messages_s  # what passes through a relay costs nothing else
        return emulator.seconds(rank, unit.layer, unit.rows.rows) + messages_s

    return Pace(seconds, recall=_recalls(context, task), listener=listener)


def _recalls(context: Context, task: Task) -> bool:
    """Whether units are computed in the first request only; collective."""
    same = context.comm.bcast(len(task.requests) == 1, root=0)
    return same and context.options.emulate_compute == "first"


@dataclass(frozen=True)
class Lateness:
    """How exactly paced units took their devices' time, over all ranks.

    ``late`` is by what share of their time they ended late, ``on_time`` the share of them that
    ended late by no more than 3 % of theirs.
    """

    late: float
    on_time: float


def lateness(context: Context, session: Session) -> Lateness | None:
    """None where units are not paced; collective."""
    pace = session.pace
    if pace is None:
        return None
    mine = (pace.wanted_s, pace.late_s, float(pace.units), float(pace.on_time))
    wanted_s, late_s, units, on_time = map(sum, zip(*context.comm.allgather(mine), strict=True))
    return Lateness(late_s / max(wanted_s, 1e-9), on_time / max(units, 1.0))


def single_rank(graph: Graph, tables: UnitTables) -> int:
    """The rank that computes everything in the tables of a single-device plan."""
    computing = {
        unit.rank
        for units in tables.ranks
        for unit in units
        if graph.by_name[unit.layer].kind == "compute"
    }
    (rank,) = computing or {0}
    return rank


def fits(graph: Graph, memory_bytes: int) -> bool:
    """Whether the whole model runs in so much memory: weights packed beside plain, tensors."""
    weights = sum(spec.size_bytes for spec in graph.weight_specs.values())
    widest = max(
        layer.out.size_bytes + sum(spec.size_bytes for spec in graph.input_specs(layer))
        for layer in graph.layers
    )
    return 2 * weights + 2 * widest < memory_bytes


@dataclass(frozen=True)
class Contender:
    """A session whose requests are timed; while it runs, rank ``alone`` has all its host's cores.

    ``alone`` is for a session in which one rank computes and the others sleep. It computes with
    as many threads as its host has cores, or, where ``own_threads``, with no more than usual.
    """

    session: Session
    alone: int | None = None
    own_threads: bool = False


def single_device_contenders(
    context: Context, rank: int, open_alone: Callable[[], Session]
) -> list[Contender]:
    """The ways in which the best single device may run, all to be measured; collective.

    With all cores of its host, and, where ranks share the host, with the threads that the rank
    has in the job as well: on a busy machine the threads of one process wait for one another,
    and more of them can be much slower. The best of them is what a user would compare with.
    ``open_alone`` opens a session in which ``rank`` computes alone. Each way has its own, as
    kernels are made for a number of threads.
    """
    affinity = context.affinity
    shares = context.comm.bcast(affinity.host_threads != affinity.threads, root=rank)
    contenders = []
    for own_threads in (False, True) if shares else (False,):
        with _cores_of_its_host(context, rank, own_threads):
            session = open_alone()
        contenders.append(Contender(session, alone=rank, own_threads=own_threads))
    return contenders


def fastest(measured: Sequence[Measured]) -> Measured:
    """The contender with the least median latency; rank 0 only."""
    return min(measured, key=lambda one: statistics.median(one.latencies_s))


def warm_up(context: Context, task: Task, contenders: Sequence[Contender]) -> None:
    """As many untimed requests through every session as the options say; collective."""
    for contender in contenders:
        series = _Series(context, task, contender.session)
        with _cores_of_its_host(context, contender.alone, contender.own_threads):
            series.run(context.options.warmup, timed=False)


def measure(
    context: Context, task: Task, contenders: Sequence[Contender], *, rounds: int = _ROUNDS
) -> tuple[Measured, ...]:
    """Timed requests through every session, a few of each in turn, after untimed; collective.

    So what slows the machines down for a while slows all sessions alike.

    Parameters
    ----------
    contenders : the same on every rank, in the same order.
    rounds : how often each of them has its turn.

    Returns
    -------
    tuple of Measured
        One for each contender.
    """
    options = context.options
    count = max(options.repeat, context.comm.bcast(len(task.requests), root=0))
    # A block of few requests would measure how the pipeline fills and empties.
    deepest = max(contender.session.in_flight for contender in contenders)
    rounds = min(rounds, count) if deepest == 1 else max(min(rounds, count // (4 * deepest)), 1)
    shares = [count // rounds + (i < count % rounds) for i in range(rounds)]
    series = [_Series(context, task, contender.session) for contender in contenders]
    warm_up(context, task, contenders)
    for share in shares:
        for contender, requests in zip(contenders, series, strict=True):
            with _cores_of_its_host(context, contender.alone, contender.own_threads):
                requests.run(share, timed=True)
    return tuple(requests.measured() for requests in series)


class _Series:
    """Requests through one session, block by block, and what they took."""

    def __init__(self, context: Context, task: Task, session: Session) -> None:
        self._context = context
        self._requests = task.requests
        self._session = session
        self._latencies_s: list[float] = []
        self._answers: dict[int, tuple[Tensor, ...]] = {}
        self._deviations: list[tuple[int, tuple[Tensor, ...]]] = []
        self._compute_s = self._wait_s = self._served_s = 0.0

    def run(self, count: int, *, timed: bool) -> None:
        """A block of requests that starts on all ranks together; collective."""
        with agreed(self._context.comm):
            pass
        clock = self._session.clock
        clock.reset()
        if self._session.pace is not None:
            self._session.pace.counts = timed
        first = len(self._latencies_s) if timed else 0
        chosen = [0] * count
        if self._context.first and timed:
            chosen = [which % len(self._requests) for which in range(first, first + count)]
        requests = [self._requests[i].tensors if self._context.first else () for i in chosen]
        started_s = time.perf_counter()
        answers = self._session.run_all(requests)
        for which in chosen:
            with self._context.timed("request"):
                answer = next(answers)
            if timed:
                self._latencies_s.append(answer.latency_s)
            if self._context.first:
                self._context.answered()
                if timed:
                    self._take(which, answer)
        next(answers, None)  # until what others need of this rank has been taken
        if not timed and self._session.meter is not None:
            self._session.meter.reset()
        if timed:
            self._served_s += time.perf_counter() - started_s
            self._compute_s += clock.compute_s
            self._wait_s += clock.wait_s
        self._context.pulse.wait_for_all()

    def _take(self, which: int, answer: Answer) -> None:
        first = self._answers.setdefault(which, answer.outputs)
        if self._context.options.verify and len(self._deviations) < _DEVIATIONS_KEPT:
            same = zip(first, answer.outputs, strict=True)
            if not all(torch.equal(*pair) for pair in same):
                self._deviations.append((which, answer.outputs))
        self._context.progress.update(
            f"request {len(self._latencies_s)} ({self._session.tables.partitioner}): "
            f"{answer.latency_s * 1e3:.1f} ms"
        )

    def measured(self) -> Measured:
        answers = tuple(self._answers[i] for i in sorted(self._answers))
        return Measured(
            tuple(self._latencies_s),
            self._served_s,
            answers,
            tuple(self._deviations),
            self._compute_s,
            self._wait_s,
            self._session.executor.engines,
            self._session.in_flight,
            describe(self._session.policy),
        )


def rank_times(session: Session) -> RankTimes | None:
    """Where this rank's time went in its timed requests, if that was taken down."""
    if session.meter is None:
        return None
    units = session.tables.ranks[session.rank]
    times = []
    for unit, spent in zip(units, session.meter.units_ms(), strict=True):
        parts_ms: dict[str, float] = {str(part): ms for part, ms in spent.items()}
        times.append(UnitTimes(unit.label, unit.operator, parts_ms))
    return RankTimes(session.rank, tuple(times))


@contextmanager
def _cores_of_its_host(context: Context, alone: int | None, own_threads: bool) -> Iterator[None]:
    """Give the rank that is alone, if there is one, every core of its host for a while."""
    if context.rank != alone:
        yield
        return
    affinity = context.affinity
    bind_to(affinity.host_cores)
    threads = affinity.threads if own_threads else affinity.host_threads
    apply_threads(context.options.threads or threads)
    try:
        yield
    finally:
        bind_to(affinity.cores)
        apply_threads(affinity.threads)


def rank_stats(context: Context, session: Session, measured: Measured, host: str) -> RankStats:
    """This rank's line of the report."""
    graph, tables = session.graph, session.tables
    units = tables.ranks[context.rank]
    count = max(len(measured.latencies_s), 1)
    sent = [transfer for unit in units for transfer in unit.forwards]
    producers = graph.by_name
    size = sum(transfer_bytes(producers[t.producer], t.rows) for t in sent)
    # Linux counts kilobytes, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return RankStats(
        rank=context.rank,
        host=host,
        units=len(units),
        rows=sum(unit.owned.rows for unit in units if producers[unit.layer].kind == "compute"),
        compute_ms=measured.compute_s / count * 1e3,
        wait_ms=measured.wait_s / count * 1e3,
        bytes_sent=size,
        messages_sent=len(sent),
        peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
        planned_memory_bytes=session.planned.peak_bytes,
        held_memory_bytes=session.held_bytes,
        threads=context.affinity.threads,
        waiting=measured.waiting,
        engines=engine_uses(graph, measured.engines),
    )


__all__ = [
    "Contender", "Lateness", "Measured", "OpenTransport", "fits", "hand_out_weights", "lateness",
    "measure", "open_session", "rank_stats", "rank_times", "single_rank", "warm_up",
]  # fmt: skip
