"""What a run found out, as frozen values, and its JSON form.

Times are in milliseconds unless a name says otherwise; bytes, messages and rows are those of
one request.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeflow_mpi.report.breakdown import RankTimes, breakdown_json
from edgeflow_mpi.report.engine_use import EngineUse, engines_json, summed
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.timings import Timings

Json = dict[str, object]


@dataclass(frozen=True)
class Latency:
    """Time from the input on rank 0 to the answer on rank 0, of every measured request.

    Attributes
    ----------
    all_ms : tuple of float
        In the order of the run; must not be empty.
    """

    all_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.all_ms:
            raise ValueError("no request was measured")

    @property
    def median_ms(self) -> float:
        return float(np.median(self.all_ms))

    @property
    def p95_ms(self) -> float:
        """95th percentile, interpolated linearly between measurements."""
        return float(np.percentile(self.all_ms, 95))

    @property
    def min_ms(self) -> float:
        return min(self.all_ms)


@dataclass(frozen=True)
class SingleDevice:
    """The whole model on the best single device of the job, measured in the same job."""

    median_ms: float
    rank: int


@dataclass(frozen=True)
class RankStats:
    """One rank's part of one request.

    Attributes
    ----------
    rank, host
        Who.
    units : int
        Execution units that it runs.
    rows : int
        Rows it owns, summed over all layers that compute something.
    compute_ms, wait_ms : float
        Time in units, and time with no unit ready; typical of one request.
    bytes_sent, messages_sent : int
        To other ranks.
    peak_memory_bytes : int
        The most memory the process has held at any time of the job.
    planned_memory_bytes, held_memory_bytes : int
        What the plan said that weights, what engines keep of them, and tensors need at most, and
        what of it was allocated for the whole job.
    threads : int
        That its kernels use.
    waiting : str
        What it does while it waits for messages, in a few words.
    engines : tuple of EngineUse
        How much of it each engine computes.
    """

    rank: int
    host: str
    units: int
    rows: int
    compute_ms: float
    wait_ms: float
    bytes_sent: int
    messages_sent: int
    peak_memory_bytes: int
    planned_memory_bytes: int = 0
    held_memory_bytes: int = 0
    threads: int = 1
    waiting: str = ""
    engines: tuple[EngineUse, ...] = ()


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from its float64 reference, and how far it may be.

    Attributes
    ----------
    name : str
        Of the output or layer.
    abs_err : float
        Largest absolute difference to the reference.
    rel_err : float
        That, relative to the largest magnitude in the reference.
    fp32_err : float
        ``rel_err`` of plain torch on the same request.
    tolerance : float
        The largest ``rel_err`` that is accepted.
    fault : str or None
        Why the tensor is wrong whatever the numbers say, such as values that are not finite.
    counted : bool
        Whether the elements, integers or booleans, were compared for equality, and
        ``rel_err`` is the share of those that differ.
    """

    name: str
    abs_err: float
    rel_err: float
    fp32_err: float
    tolerance: float
    fault: str | None = None
    counted: bool = False

    @property
    def passed(self) -> bool:
        # Not "rel_err > tolerance": a NaN must fail.
        return self.fault is None and self.rel_err <= self.tolerance

    @property
    def severity(self) -> float:
        """Error as a multiple of the tolerance: above 1 where the tensor is wrong."""
        if self.fault is not None or math.isnan(self.rel_err):
            return math.inf
        if self.rel_err == 0:
            return 0.0
        return self.rel_err / self.tolerance if self.tolerance else math.inf


def worst(differences: Iterable[Difference]) -> Difference:
    """The one with the largest error for its tolerance; the first of equals."""
    return max(differences, key=lambda difference: difference.severity)


@dataclass(frozen=True)
class LayerComparison:
    """Every layer against plain torch, each relative to its own magnitude.

    Attributes
    ----------
    differences : tuple of Difference
        In the order of the run.
    unmatched : tuple of str
        Layers that plain torch has no counterpart of, which were not compared.
    """

    differences: tuple[Difference, ...]
    unmatched: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.first_bad is None

    @property
    def first_bad(self) -> Difference | None:
        """The first layer beyond its tolerance; later ones may only inherit its error."""
        return next((d for d in self.differences if not d.passed), None)


@dataclass(frozen=True)
class Verification:
    """The answers against the unsplit model in float64.

    Attributes
    ----------
    outputs : tuple of Difference
        Every output of every request.
    requests : int
        How many requests were compared.
    layers : LayerComparison or None
        Given where layers were compared as well; they must agree too.
    """

    outputs: tuple[Difference, ...]
    requests: int = 1
    layers: LayerComparison | None = None

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError("nothing was compared")

    @property
    def worst(self) -> Difference:
        """The output with the largest error for its tolerance."""
        return worst(self.outputs)

    @property
    def by_name(self) -> Mapping[str, Difference]:
        """Output name -> the worst of its requests."""
        found: dict[str, Difference] = {}
        for difference in self.outputs:
            known = found.get(difference.name)
            found[difference.name] = difference if known is None else worst((known, difference))
        return found

    @property
    def max_abs_err(self) -> float:
        """Largest absolute error of any output."""
        errors = [difference.abs_err for difference in self.outputs]
        return math.nan if any(math.isnan(error) for error in errors) else max(errors)

    @property
    def max_rel_err(self) -> float:
        """Relative error of the worst output."""
        return self.worst.rel_err

    @property
    def fp32_err(self) -> float:
        """Relative error that plain fp32 torch has in the worst output."""
        return self.worst.fp32_err

    @property
    def tolerance(self) -> float:
        """What is accepted for the worst output."""
        return self.worst.tolerance

    @property
    def first_bad_layer(self) -> str | None:
        bad = self.layers.first_bad if self.layers is not None else None
        return None if bad is None else bad.name

    @property
    def passed(self) -> bool:
        right = all(difference.passed for difference in self.outputs)
        return right and (self.layers is None or self.layers.passed)


@dataclass(frozen=True)
class RunReport:
    """Everything that a finished run says about itself.

    Attributes
    ----------
    model, weights_note, random_weights
        What ran, and with which weights.
    partitioner : str
        Name of the partitioner, or of where the plan came from.
    input_shapes : tuple of tuple of int
        One per input of the model.
    requests : tuple of str
        Names of the requests.
    latency : Latency
        Over all requests and repetitions, warm-up left out.
    per_rank : tuple of RankStats
        In rank order; every rank of the job.
    single_device : SingleDevice or None
        None where it was not measured or the model fits on no single device.
    predicted_ms : float or None
        What the planner expected; None where nobody predicted it.
    verification : Verification or None
        None where it was not asked for.
    timings : Timings
    versions : mapping of str to str
        Of everything that the numbers may depend on.
    warmup, repeat : int
        Runs of every request before and while measuring.
    notes : tuple of str
        Sentences for the reader, such as warnings of the set-up.
    single_device_note : str
        Why there is no ``single_device``, in a few words.
    emulated : str
        The devices that the ranks stood for, where these were slowed down; else empty.
    in_flight : int
        How many requests were under way at once. The latency of each includes what it waited
        for the others.
    throughput_per_s : float or None
        Answers a second, over all timed requests.
    progress_thread : bool
        Whether messages over TCP moved while ranks computed.
    breakdown : tuple of RankTimes
        Where the time of every rank and unit went; empty where it was not taken down.
    engine : str
        The engine that was to compute everything; empty where each layer had its fastest.
    """

    model: str
    weights_note: str
    random_weights: bool
    partitioner: str
    input_shapes: tuple[tuple[int, ...], ...]
    requests: tuple[str, ...]
    latency: Latency
    per_rank: tuple[RankStats, ...]
    single_device: SingleDevice | None = None
    predicted_ms: float | None = None
    verification: Verification | None = None
    timings: Timings = field(default_factory=Timings)
    versions: Mapping[str, str] = field(default_factory=dict)
    warmup: int = 0
    repeat: int = 1
    notes: tuple[str, ...] = ()
    single_device_note: str = ""
    emulated: str = ""
    in_flight: int = 1
    throughput_per_s: float | None = None
    progress_thread: bool = False
    breakdown: tuple[RankTimes, ...] = ()
    engine: str = ""

    def __post_init__(self) -> None:
        if [stats.rank for stats in self.per_rank] != list(range(len(self.per_rank))):
            raise ValueError("per_rank must have every rank once, in order")

    @property
    def ranks(self) -> int:
        return len(self.per_rank)

    @property
    def messages(self) -> int:
        """Messages of one request, among all ranks."""
        return sum(stats.messages_sent for stats in self.per_rank)

    @property
    def bytes_sent(self) -> int:
        """Bytes of one request, among all ranks."""
        return sum(stats.bytes_sent for stats in self.per_rank)

    @property
    def engines(self) -> tuple[EngineUse, ...]:
        """How much each engine computes on all ranks, most first."""
        return summed(use for stats in self.per_rank for use in stats.engines)

    @property
    def rows(self) -> int:
        """Rows of all layers."""
        return sum(stats.rows for stats in self.per_rank)

    @property
    def used(self) -> tuple[int, ...]:
        """Ranks that own rows; rank 0 has units even where it only passes tensors on."""
        return tuple(stats.rank for stats in self.per_rank if stats.rows)

    @property
    def hosts(self) -> Mapping[str, int]:
        """Host -> how many ranks it carries, in rank order."""
        return Counter(stats.host for stats in self.per_rank)

    @property
    def speedup(self) -> float | None:
        """Single device's median over this run's median; None without a baseline."""
        if self.single_device is None or self.latency.median_ms == 0:
            return None
        return self.single_device.median_ms / self.latency.median_ms


def to_json(report: RunReport) -> Json:
    """The report for tools: plain lists, numbers and strings under fixed keys.

    A number that is not finite becomes null, which every JSON reader understands.
    """
    single, timings = report.single_device, report.timings
    found: Json = {
        "model": report.model,
        "ranks": report.ranks,
        "partitioner": report.partitioner,
        "input_shape": _shape(report.input_shapes),
        "latency_ms": {
            "median": report.latency.median_ms,
            "p95": report.latency.p95_ms,
            "min": report.latency.min_ms,
            "all": list(report.latency.all_ms),
        },
        "single_device_ms": (
            None if single is None else {"median": single.median_ms, "rank": single.rank}
        ),
        "speedup": report.speedup,
        "predicted_ms": report.predicted_ms,
        "verify": None if report.verification is None else _verify(report.verification),
        "messages": report.messages,
        "bytes_sent": report.bytes_sent,
        "per_rank": [
            {
                "rank": stats.rank,
                "host": stats.host,
                "units": stats.units,
                "rows": stats.rows,
                "compute_ms": stats.compute_ms,
                "wait_ms": stats.wait_ms,
                "bytes_sent": stats.bytes_sent,
                "messages_sent": stats.messages_sent,
                "peak_memory_bytes": stats.peak_memory_bytes,
                "planned_memory_bytes": stats.planned_memory_bytes,
                "held_memory_bytes": stats.held_memory_bytes,
                "threads": stats.threads,
                "waiting": stats.waiting,
                "engines": engines_json(stats.engines),
            }
            for stats in report.per_rank
        ],
        "timings_s": {**timings.stages_s, "first_answer": timings.first_answer_s},
        "reused": list(timings.reused),
        "versions": dict(report.versions),
        "emulated": report.emulated or None,
        "in_flight": report.in_flight,
        "throughput_per_s": report.throughput_per_s,
        "progress_thread": report.progress_thread,
        "breakdown": breakdown_json(report.breakdown) or None,
        "engines": engines_json(report.engines),
        "engine": report.engine or "auto",
        "weights": report.weights_note,
        "random_weights": report.random_weights,
        "requests": list(report.requests),
        "warmup": report.warmup,
        "repeat": report.repeat,
        "hosts": dict(report.hosts),
        "used_ranks": list(report.used),
        "notes": list(report.notes),
    }
    return {key: _finite(value) for key, value in found.items()}


def write_json(report: RunReport, path: Path) -> None:
    """Write :func:`to_json` to a file.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    text = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_file(path, "the report", lambda file: file.write(text.encode() + b"\n"))


def _shape(shapes: Sequence[Sequence[int]]) -> list[int] | list[list[int]]:
    """The one input's shape, or a list of shapes where there are several."""
    return list(shapes[0]) if len(shapes) == 1 else [list(shape) for shape in shapes]


def _verify(verification: Verification) -> Json:
    found: Json = {
        "max_abs_err": verification.max_abs_err,
        "max_rel_err": verification.max_rel_err,
        "tolerance": verification.tolerance,
        "passed": verification.passed,
        "fp32_err": verification.fp32_err,
        "requests": verification.requests,
        "outputs": {name: _difference(d) for name, d in verification.by_name.items()},
    }
    if verification.layers is not None:
        found["layers"] = len(verification.layers.differences)
        found["first_bad_layer"] = verification.first_bad_layer
    return found


def _difference(difference: Difference) -> Json:
    return {
        "max_abs_err": difference.abs_err,
        "max_rel_err": difference.rel_err,
        "tolerance": difference.tolerance,
        "passed": difference.passed,
        "fp32_err": difference.fp32_err,
        "fault": difference.fault,
    }


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
