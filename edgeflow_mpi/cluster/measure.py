"""Computation time of every distinct layer shape on every device, measured with the kernels.

All ranks measure the same layer with the same rows at the same time, because ranks that
share a host will compete for its cores and its memory in the job as well. Between two calls
some memory is read (:mod:`edgeflow_mpi.cluster.cooling`), because in the job a layer never runs
twice in a row: with its weights and code still in the caches the layers of a small network look
up to twice as fast as they are in their turn. Then the inputs are read, which the layer before
has just made in the job. Weights and inputs are random; one layer's weights exist at a time.

Of the layers that few rows are left of, but many weights, some output channels are measured as
well: such layers may be divided so (:mod:`edgeflow_mpi.graph.division`), and what is only derived
from rows does not know how engines and memory do with part of the weights.

Several engines may be able to do a layer. Those that are near the best in a short trial
(:mod:`edgeflow_mpi.cluster.trial`) are all measured, and the cost is the fastest one's, which
the cost names.

Ranks of one host that turn out to be alike are given the same costs, the means of theirs:
else a plan would follow the noise, with breakpoints that wander and rows that travel for
nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import torch

from edgeflow_mpi.cluster.agree import agree
from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.cluster.cooling import Cooling, shared_cache_bytes
from edgeflow_mpi.cluster.fit import fit_affine, fit_share
from edgeflow_mpi.cluster.profile import Device, LayerCost
from edgeflow_mpi.cluster.random_data import PreparedCall, random_weights
from edgeflow_mpi.cluster.trial import Attempt, Candidate, Trial, close
from edgeflow_mpi.errors import EdgeflowError, ProfileError
from edgeflow_mpi.graph.division import divided
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.tail import weight_bytes, weighty
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.kernels.prepare import attempt
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.spans import Span

_SHORTEST_WINDOW_S, _LONGEST_WINDOW_S = 0.003, 0.1
_FEWEST_CALLS, _ENOUGH_CALLS = 2, 7
_PATIENCE = 2  # windows to wait for enough calls; a slow device then makes do with the fewest
_ALIKE = 1.15
_EQUAL = 1.1  # engines stand in an order in which they usually are


Call = TypeVar("Call", bound=Callable[[], object])
Key: TypeAlias = tuple[str, int, str]
"""(signature, rows, engine): what a timing is of."""


@dataclass(frozen=True)
class Timing:
    """Calls of one kernel within one window: the typical one, and what competition cost.

    ``cpu_s`` and ``wall_s`` are medians of a call's processor time and duration;
    ``stretch`` is the window's length over the processor time used in it.
    """

    cpu_s: float
    wall_s: float
    stretch: float


@dataclass(frozen=True)
class Computation:
    """What was measured: per rank, signature -> cost, and the typical stretch in it."""

    costs: tuple[Mapping[str, LayerCost], ...]
    stretches: tuple[float, ...]


@torch.inference_mode()
def measure_compute(
    comm: Communicator,
    graph: Graph,
    needs: Needs,
    devices: Sequence[Device],
    *,
    progress: Progress,
    budget_s: float = 3.0,
    engines: Sequence[str] = (DEFAULT,),
    attempt: Attempt = attempt,
) -> Computation:
    """Measure every distinct compute layer on every rank; collective, same result everywhere.

    Parameters
    ----------
    comm
        All its ranks must call this with the same graph and budget.
    graph, needs
        The layers, and the input rows that their kernels take.
    devices
        Of the ranks; what a host's ranks have in common decides which may be alike.
    progress
        Told which layer is being measured.
    budget_s
        Seconds for the timed windows of all layers together. A window is between 3 and
        100 ms, but longer where kernels are slow (see :func:`time_calls`); making weights
        and kernels comes on top.
    engines
        Names of this rank's engines among which to find the fastest for every layer. A layer
        that none of them can do is measured with the default engine.
    attempt
        Makes the kernels.

    Returns
    -------
    Computation
        Of all ranks.

    Raises
    ------
    ProfileError
        On all ranks, naming layer and rank, when a kernel fails on one of them.
    """
    subjects = _subjects(graph, needs, comm.Get_size())
    windows = sum(len(subject.counts) for subject in subjects)
    window_s = min(max(budget_s / max(windows, 1), _SHORTEST_WINDOW_S), _LONGEST_WINDOW_S)
    cooling = Cooling(shared_cache_bytes())

    def between(call: PreparedCall) -> None:
        cooling.little()
        call.fetch_inputs()

    timings: dict[Key, Timing] = {}
    error: Exception | None = None
    weights: dict[str, torch.Tensor] = {}
    for index, subject in enumerate(subjects, 1):
        layer = subject.layer
        progress.update(f"layer {index} of {len(subjects)}: {layer.name}")
        if weights.keys() != set(layer.weights):
            weights = {}
        signature = subject.signature
        trial = Trial(attempt, engines, subject.graph, layer, subject.needs)
        before_round = cooling.before_round(weight_bytes(graph, layer))
        for rows in subject.counts:
            span = centred(layer.rows, rows)
            found: tuple[Candidate, ...] = ()
            try:
                if error is None:
                    weights = weights or random_weights(graph, layer)
                    found = trial.candidates(span, weights, between)
            except Exception as raised:  # noqa: BLE001 (all ranks must learn of it)
                error = explained(layer, raised, span)
            # Besides agreeing, this starts the windows on all ranks at the same time.
            agree(comm, error)
            mine = {candidate.engine: candidate for candidate in found}
            timed = close(comm.allgather({name: one.trial_s for name, one in mine.items()}))
            runs = {engine: mine[engine].run for engine in timed if engine in mine}
            try:
                if error is None and runs:
                    for engine, timing in zip(
                        runs,
                        time_in_turn(list(runs.values()), window_s, between, before_round),
                        strict=True,
                    ):
                        timings[signature, rows, engine] = timing
            except Exception as raised:  # noqa: BLE001 (all ranks learn of it at the next point)
                error = explained(layer, raised, span)
    agree(comm, error)
    own = points_of(timings, threads=torch.get_num_threads())
    kinds = [(device.host, device.cpu, device.threads) for device in devices]
    measured = pooled(comm.allgather(own), kinds)
    return Computation(
        tuple(_costs(points, subjects) for points in measured),
        tuple(points.stretch for points in measured),
    )


@dataclass(frozen=True)
class _Subject:
    """What is measured: a layer, as it is in a graph, at some numbers of rows."""

    graph: Graph
    needs: Needs
    layer: Layer
    counts: tuple[int, ...]

    @property
    def signature(self) -> str:
        return self.graph.signatures[self.layer.name]


def _subjects(graph: Graph, needs: Needs, ranks: int) -> tuple[_Subject, ...]:
    """All layers, each shape once, and those that may be divided by their outputs again."""
    found = [
        _Subject(graph, needs, layer, row_counts(layer, ranks)) for layer in distinct_layers(graph)
    ]
    division = weighty(graph, ranks) if ranks > 1 else ()
    shares, its_needs = divided(graph, needs, division)
    names = {name for name, _ in division}
    found += [
        _Subject(shares, its_needs, layer, share_counts(layer, ranks))
        for layer in distinct_layers(shares)
        if layer.name in names
    ]
    # A layer's weights are made once for both.
    place = {layer.name: k for k, layer in enumerate(graph.layers)}
    return tuple(sorted(found, key=lambda subject: place[subject.layer.name]))


def distinct_layers(graph: Graph) -> tuple[Layer, ...]:
    """The first compute layer of every signature, in layer order."""
    first: dict[str, Layer] = {}
    for layer in graph.layers:
        if layer.kind == "compute":
            first.setdefault(graph.signatures[layer.name], layer)
    return tuple(first.values())


def row_counts(layer: Layer, ranks: int) -> tuple[int, ...]:
    """At how many rows to measure ``layer``: all, half, a rank's even share, half of that."""
    if not layer.splits or ranks == 1:
        return (layer.rows,)
    shares = {1, 2, ranks, 2 * ranks}
    return tuple(sorted({max(1, round(layer.rows / share)) for share in shares}))


def share_counts(layer: Layer, ranks: int) -> tuple[int, ...]:
    """At how many output channels to measure a layer: a rank's even share, and half of all."""
    return tuple(sorted({max(1, round(layer.rows / share)) for share in (2, ranks)}))


def centred(extent: int, rows: int) -> Span:
    """``rows`` rows in the middle of ``extent``: with a halo on both sides, as most have."""
    start = (extent - rows) // 2
    return Span.of(start, start + rows)


def time_calls(
    run: Callable[[], object], window_s: float, between: Callable[[], object] = lambda: None
) -> Timing:
    """Call ``between`` and ``run`` in turn for ``window_s`` seconds.

    For longer where that is too short for a good median: up to twice as long for seven
    calls, and as long as it takes for two.
    """
    return time_in_turn([run], window_s, lambda _: between())[0]


def time_in_turn(
    runs: Sequence[Call],
    window_s: float,
    between: Callable[[Call], object],
    before_round: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """As :func:`time_calls` for several functions, a call of each in every round.

    ``between`` is told which function is called next.

    What else goes on on the machine then slows down all of them alike: else the choice among
    them would be that of the quietest moment.
    """
    cpu_s: list[list[float]] = [[] for _ in runs]
    wall_s: list[list[float]] = [[] for _ in runs]
    began_s, used_s = time.perf_counter(), time.thread_time()
    while not _enough(len(wall_s[0]), time.perf_counter() - began_s, window_s):
        before_round()
        for i, run in enumerate(runs):
            between(run)
            cpu_0, wall_0 = time.thread_time(), time.perf_counter()
            run()
            wall_1, cpu_1 = time.perf_counter(), time.thread_time()
            wall_s[i].append(wall_1 - wall_0)
            cpu_s[i].append(cpu_1 - cpu_0)
    # The core is often lost in the system call that reads the processor time, so the
    # stretch must be that of the whole window, not of the calls.
    passed_s, used_s = time.perf_counter() - began_s, time.thread_time() - used_s
    stretch = passed_s / max(used_s, 1e-9)
    return [
        Timing(max(statistics.median(cpu), 1e-9), max(statistics.median(wall), 1e-9), stretch)
        for cpu, wall in zip(cpu_s, wall_s, strict=True)
    ]


def _enough(calls: int, passed_s: float, window_s: float) -> bool:
    if calls < _FEWEST_CALLS or passed_s < window_s:
        return False
    return calls >= _ENOUGH_CALLS or passed_s >= _PATIENCE * window_s


@dataclass(frozen=True)
class Points:
    """One rank's results: what -> seconds, and the stretch that is in them."""

    seconds: Mapping[Key, float]
    stretch: float

    @property
    def best(self) -> Mapping[tuple[str, int], tuple[float, str]]:
        """(signature, rows) -> seconds of the fastest engine, and its name.

        Of engines that are equal but for noise it is the one that was tried first.
        """
        tried: dict[tuple[str, int], list[tuple[float, str]]] = {}
        for (signature, rows, engine), seconds in self.seconds.items():
            tried.setdefault((signature, rows), []).append((seconds, engine))
        return {
            key: next(one for one in found if one[0] <= _EQUAL * min(found)[0])
            for key, found in tried.items()
        }

    @property
    def total_s(self) -> float:
        return sum(seconds for seconds, _ in self.best.values())


def points_of(timings: Mapping[Key, Timing], *, threads: int) -> Points:
    """Seconds that stand for each timing of a rank with so many threads.

    A single-threaded kernel that runs for less than a scheduler's time slice is rarely
    interrupted, so its median duration would not show that its core is shared. Its
    processor time, times the median stretch over all windows, does, and varies less from
    run to run. With several threads the caller sleeps while others work, so that processor
    time means little; those ranks have cores of their own.
    """
    if threads > 1 or not timings:
        return Points({key: timing.wall_s for key, timing in timings.items()}, 1.0)
    stretch = max(statistics.median(timing.stretch for timing in timings.values()), 1.0)
    return Points({key: timing.cpu_s * stretch for key, timing in timings.items()}, stretch)


def pooled(measured: Sequence[Points], kinds: Sequence[Hashable]) -> tuple[Points, ...]:
    """What ranks of one kind have measured, put together.

    Each point is the mean over them without those that took more than 15 % longer than the
    fastest: a machine that others use as well has cores that are slow for a while. A rank that
    is as fast as the fastest at less than a quarter of the points was given a slower core, and
    keeps its own. Of what only some of the ranks have measured, the mean is theirs.
    """
    result = list(measured)
    for kind in dict.fromkeys(kinds):
        members = [rank for rank, other in enumerate(kinds) if other == kind]
        least = _least([measured[rank].seconds for rank in members])
        alike = [rank for rank in members if _keeps_up(measured[rank].seconds, least)]
        if not alike:
            continue
        least = _least([measured[rank].seconds for rank in alike])
        for rank in alike:
            result[rank] = Points(
                {
                    key: statistics.fmean(
                        measured[other].seconds[key]
                        for other in alike
                        if measured[other].seconds.get(key, math.inf) <= _ALIKE * least[key]
                    )
                    for key in measured[rank].seconds
                },
                statistics.fmean(measured[other].stretch for other in alike),
            )
    return tuple(result)


def _least(times_s: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
    """The least of each, of those that have it."""
    found: dict[Key, float] = {}
    for times in times_s:
        for key, seconds in times.items():
            found[key] = min(seconds, found.get(key, math.inf))
    return found


def _keeps_up(times_s: Mapping[Key, float], least_s: Mapping[Key, float]) -> bool:
    """Whether a quarter of the times are hardly more than the least of their kind."""
    near = sum(seconds <= _ALIKE * least_s[key] for key, seconds in times_s.items())
    return 4 * near >= len(times_s)


def _costs(points: Points, subjects: Sequence[_Subject]) -> dict[str, LayerCost]:
    """Lines through the points of every signature, each point by the fastest engine.

    All channels of a layer are all of its rows: there both lines meet, and both have that point.
    """
    pairs: dict[str, list[tuple[int, float]]] = {}
    fastest: dict[str, dict[int, str]] = {}
    for (signature, rows), (seconds, engine) in points.best.items():
        pairs.setdefault(signature, []).append((rows, seconds))
        fastest.setdefault(signature, {})[rows] = engine
    origins = {
        one.signature: (one.graph.origin[one.layer.name], one.layer.rows)
        for one in subjects
        if one.layer.divided == "outputs"
    }
    costs = {
        signature: fit_affine(found)
        for signature, found in pairs.items()
        if signature not in origins
    }
    for signature, (origin, channels) in origins.items():
        if signature in pairs and origin.signature in pairs:
            whole = origin.signature, origin.rows
            pairs[signature].append((channels, points.best[whole][0]))
            fastest[signature][channels] = points.best[whole][1]
            whole_s = costs[origin.signature].seconds(origin.rows)
            costs[signature] = fit_share(pairs[signature], channels, whole_s)
    return {
        signature: replace(cost, engines=tuple(fastest[signature][rows] for rows, _ in cost.points))
        for signature, cost in costs.items()
    }


def explained(layer: Layer, error: Exception, span: Span | None = None) -> EdgeflowError:
    """One sentence for whatever a kernel of the layer, of some rows, has raised."""
    if isinstance(error, EdgeflowError):
        return error
    lines = str(error).strip().splitlines() or [""]
    rows = "" if span is None else f" with rows {span}"
    return ProfileError(
        f"layer {layer.name} cannot be measured{rows}: {type(error).__name__}: {lines[0]}"
    )
