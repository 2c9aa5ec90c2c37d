"""The whole job, stage by stage. Every rank runs this; rank 0 decides and reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.errors import EdgeflowError
from edgeflow_mpi.job.check import verify_answers, verify_layers, with_layers
from edgeflow_mpi.job.context import BASELINE, Context
from edgeflow_mpi.job.serve import (
    Contender,
    Lateness,
    Measured,
    OpenTransport,
    fastest,
    fits,
    hand_out_weights,
    lateness,
    measure,
    open_session,
    rank_stats,
    rank_times,
    single_device_contenders,
    single_rank,
)
from edgeflow_mpi.job.setup import (
    Task,
    check_files,
    check_memory,
    check_ranks_agree,
    load_task,
    make_profile,
    make_tables,
    plan_tables,
    versions,
)
from edgeflow_mpi.job.waiting import progress_thread
from edgeflow_mpi.kernels.names import AUTO
from edgeflow_mpi.report.answers import describe_answers, own_samples, save_outputs
from edgeflow_mpi.report.breakdown import RankTimes
from edgeflow_mpi.report.results import (
    Latency,
    RankStats,
    RunReport,
    SingleDevice,
    Verification,
    write_json,
)
from edgeflow_mpi.report.summary import summary
from edgeflow_mpi.report.timings import Timings
from edgeflow_mpi.runtime.session import Session
from edgeflow_mpi.units.tables import UnitTables

Tensor = torch.Tensor


_NO_DEVICE = "the whole model fits into the memory of no single device"
_LATE = 0.05


@dataclass(frozen=True)
class _Served:
    """The timed requests: through the plan, and on the best single device if there is one."""

    ours: Measured
    stats: RankStats
    single: SingleDevice | None
    late: Lateness | None
    times: RankTimes | None


@dataclass(frozen=True)
class _Baseline:
    """The whole model on ``rank``, ready to run beside the plan, in one or two ways."""

    contenders: tuple[Contender, ...]
    rank: int


@torch.no_grad()
def run_job(context: Context, open_transport: OpenTransport) -> int:
    """Set up, answer, check and report; the exit status of this rank.

    Raises
    ------
    RuntimeFailure
        On the rank that failed while requests were under way: the job must be aborted.
    EdgeflowError
        Anything else, the same on all ranks; also, after the report, where the verification
        found a difference.
    """
    options = context.options
    hosts = check_ranks_agree(context)
    saved = check_files(context)
    task = load_task(context, saved)
    wants_profile = (
        options.plan is None
        or options.baseline
        or options.profile is not None
        or options.save_profile is not None
    )
    profile = make_profile(context, task) if wants_profile else None
    tables = make_tables(context, task, profile, saved)
    check_memory(context, task, tables, profile if wants_profile else None)
    weights = hand_out_weights(context, task, tables, None, {})
    served = _serve(context, task, profile, tables, weights, hosts[context.rank], open_transport)
    per_rank = context.comm.gather(served.stats, root=0)
    times = context.comm.gather(served.times, root=0) if context.options.breakdown else None
    verification = _verify(context, task, tables, weights, served.ours, open_transport)
    with agreed(context.comm, "reporting the result"):
        if context.first:
            report = make_report(
                context, task, tables, served.ours, per_rank, served.single, verification,
                served.late,
            )  # fmt: skip
            _present(context, task, served.ours, replace(report, breakdown=tuple(times or ())))
    return 0


def _serve(
    context: Context,
    task: Task,
    profile: Profile | None,
    tables: UnitTables,
    weights: Mapping[str, Tensor],
    host: str,
    open_transport: OpenTransport,
) -> _Served:
    """Answer the requests; collective. The sessions' memory is free again afterwards."""
    options = context.options
    with context.timed("prepare"):
        session = open_session(
            context, task, tables, weights, open_transport,
            plant_fault=options.plant_fault, in_flight=options.in_flight, wait=options.wait,
            metered=options.breakdown,
        )  # fmt: skip
    contenders = [Contender(session)]
    with context.timed(BASELINE):
        baseline = _open_baseline(context, task, profile, tables, weights, open_transport)
    if baseline is not None:
        contenders += baseline.contenders
    count = max(options.repeat, len(task.requests))
    beside = "" if baseline is None else ", and as many on the best single device"
    with context.progress.step(f"{count} timed request{'s' * (count != 1)}{beside}"):
        ours, *theirs = measure(context, task, contenders)
    late = lateness(context, session)
    if late is not None and late.late > _LATE:
        context.warn(f"this machine was too busy: units ended {100 * late.late:.0f} % late")
    session.close()
    single = None
    if baseline is not None:
        for contender in baseline.contenders:
            contender.session.close()
        if context.first:
            alone = Latency(_ms(fastest(theirs).latencies_s))
            single = SingleDevice(alone.median_ms, baseline.rank)
    stats = rank_stats(context, session, ours, host)
    return _Served(ours, stats, single, late, rank_times(session))


def _ms(seconds: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(value * 1e3 for value in seconds)


def _open_baseline(
    context: Context,
    task: Task,
    profile: Profile | None,
    tables: UnitTables,
    weights: Mapping[str, Tensor],
    open_transport: OpenTransport,
) -> _Baseline | None:
    """The best single device's sessions, or None if it is not wanted or fits nowhere."""
    if not context.options.baseline:
        return None
    # A context of its own: its stages must not count as those of the plan.
    context = replace(context, timings_s={})

    def make() -> tuple[UnitTables, int] | None:
        assert profile is not None
        if not any(fits(task.graph, device.memory_bytes) for device in profile.devices):
            return None
        alone = plan_tables(context, task, profile, "single")
        rank = single_rank(task.graph, alone)
        return (alone, rank) if fits(task.graph, profile.devices[rank].memory_bytes) else None

    found = broadcast(context.comm, make, "planning for the best single device")
    if found is None:
        context.progress.say(f"  no baseline: {_NO_DEVICE}")
        return None
    alone, rank = found
    theirs = hand_out_weights(context, task, alone, tables, weights)

    def open_alone() -> Session:
        return open_session(context, task, alone, theirs, open_transport)

    return _Baseline(tuple(single_device_contenders(context, rank, open_alone)), rank)


def _verify(
    context: Context,
    task: Task,
    tables: UnitTables,
    weights: Mapping[str, Tensor],
    ours: Measured,
    open_transport: OpenTransport,
) -> Verification | None:
    """Compare with the undivided model, as far as the options ask for it; collective."""
    options = context.options
    if not (options.verify or options.verify_layers):
        return None
    verification: Verification | None = None
    with agreed(context.comm, "computing the undivided model"):
        if context.first:
            assert task.undivided is not None
            task.undivided()  # a step of its own, where it has to be loaded
            with context.progress.step("the undivided model in plain torch, float64"):
                verification = verify_answers(context, task, tables, ours)
    if options.verify_layers:
        keeping = open_session(
            context, task, tables, weights, open_transport,
            plant_fault=options.plant_fault, keep=True,
        )  # fmt: skip
        with context.progress.step("every layer in plain torch, float64"):
            comparison = verify_layers(context, task, keeping)
        keeping.close()
        if verification is not None:
            verification = with_layers(verification, comparison)
    return verification


def make_report(
    context: Context,
    task: Task,
    tables: UnitTables,
    ours: Measured,
    per_rank: list[RankStats],
    single: SingleDevice | None,
    verification: Verification | None,
    late: Lateness | None = None,
) -> RunReport:
    """What rank 0 knows about a plan's timed requests."""
    assert task.model is not None
    return RunReport(
        model=task.model.name,
        weights_note=task.model.weights_note,
        random_weights=task.model.random_weights,
        partitioner=tables.partitioner,
        input_shapes=tuple(spec.shape for spec in task.model.inputs),
        requests=tuple(request.name for request in task.requests),
        latency=Latency(_ms(ours.latencies_s)),
        in_flight=ours.in_flight,
        throughput_per_s=len(ours.latencies_s) / ours.served_s,
        progress_thread=progress_thread(),
        per_rank=tuple(per_rank),
        single_device=single,
        predicted_ms=None if tables.predicted_s is None else tables.predicted_s * 1e3,
        verification=verification,
        timings=Timings.of(context.timings_s, tuple(dict.fromkeys(context.cache.used))),
        versions=versions(context),
        warmup=context.options.warmup,
        repeat=context.options.repeat,
        notes=tuple(context.notes),
        single_device_note=_NO_DEVICE if context.options.baseline else "",
        emulated=_emulated(task, late),
        engine="" if context.options.engine == AUTO else context.options.engine,
    )


def _emulated(task: Task, late: Lateness | None) -> str:
    """The devices that the ranks stood for, in one line."""
    if task.emulator is None:
        return ""
    speeds = Counter(f"{device.flops / 1e9:g}" for device in task.emulator.spec.devices)
    listed = ", ".join(f"{count} of {speed}" for speed, count in speeds.items())
    how = {
        "kernels": "kernels' own times, stretched",
        "stated": "times of units as the file states them",
    }[task.emulator.times]
    ended = ""
    if late is not None:
        ended = (
            f"; units ended {100 * late.late:.1f} % late, {100 * late.on_time:.0f} % of them by "
            "no more than 3 %"
        )
    return f"devices of {task.emulator.spec.name} ({listed} GFLOP/s), slowed down: {how}{ended}"


def _present(context: Context, task: Task, ours: Measured, report: RunReport) -> None:
    """Rank 0: print and write what was asked for, then raise if the verification failed."""
    options = context.options
    assert task.model is not None
    # The answer first: a full disk must not cost it.
    answers = [own_samples(*pair) for pair in zip(task.requests, ours.answers, strict=True)]
    print(describe_answers(task.model, task.requests, answers))
    print()
    print(summary(report), flush=True)
    if options.output is not None:
        save_outputs(options.output, task.graph.output_names, answers)
    if options.json is not None:
        write_json(report, options.json)
    if report.verification is not None and not report.verification.passed:
        raise EdgeflowError(_difference(report.verification))


def _difference(verification: Verification) -> str:
    """What the verification found, in one sentence."""
    found, layer = verification.worst, verification.first_bad_layer
    if found.fault is not None:
        text = f"{found.name}: {found.fault}"
    elif not found.passed:
        text = (
            f"{found.name} is off by {found.rel_err:.1e} of its largest value, where "
            f"{found.tolerance:.1e} is allowed"
        )
    else:
        text = "the answer is right, but not every layer on the way to it"
    first = "" if layer is None else f"; the first layer that differs is {layer}"
    return f"verification failed: {text}{first}"
