"""Computation time of every distinct layer shape on every device, measured with the kernels.

All ranks measure the same layer with the same rows at the same time, because ranks that
share a host will compete for its cores and its memory in the job as well. Between two calls
some memory is read, because in the job a layer never runs twice in a row: with its weights
and code still in the caches the layers of a small network look up to twice as fast as they
are in their turn. Weights and inputs are random: times do not depend on the values, as long
as they are ordinary numbers (denormals are slow, zeros may be fast). One layer's weights
exist at a time.

Ranks of one host that turn out to be alike are given the same costs, the means of theirs:
else a plan would follow the noise, with breakpoints that wander and rows that travel for
nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from edgeflow_mpi.cluster.agree import agree
from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.cluster.fit import fit_affine
from edgeflow_mpi.cluster.profile import Device, LayerCost
from edgeflow_mpi.errors import EdgeflowError, ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec
from edgeflow_mpi.kernels import buffers
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.prepare import prepare
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.spans import Span

_SHORTEST_WINDOW_S, _LONGEST_WINDOW_S = 0.003, 0.1
_FEWEST_CALLS, _ENOUGH_CALLS = 2, 7
_PATIENCE = 2  # windows to wait for enough calls; a slow device then makes do with the fewest
_ALIKE = 0.15
_BLOCK = 1 << 16
_COOLING_BYTES = 8 << 20  # more than a core's own caches, less than what takes long to read


class Prepare(Protocol):
    """How a kernel is made: :func:`edgeflow_mpi.kernels.prepare.prepare` or a stand-in."""

    def __call__(
        self,
        graph: Graph,
        layer: Layer,
        rows: Span,
        weights: Mapping[str, torch.Tensor],
        needs: Needs,
    ) -> Kernel: ...


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
    prepare: Prepare = prepare,
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
    prepare
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
    subjects = distinct_layers(graph)
    counts = {layer.name: row_counts(layer, comm.Get_size()) for layer in subjects}
    windows = sum(len(rows) for rows in counts.values())
    window_s = min(max(budget_s / max(windows, 1), _SHORTEST_WINDOW_S), _LONGEST_WINDOW_S)
    cooling = torch.ones(_COOLING_BYTES // 4)
    timings: dict[tuple[str, int], Timing] = {}
    error: Exception | None = None
    for index, layer in enumerate(subjects, 1):
        progress.update(f"layer {index} of {len(subjects)}: {layer.name}")
        weights: dict[str, torch.Tensor] = {}
        signature = graph.signatures[layer.name]
        for rows in counts[layer.name]:
            span = centred(layer.rows, rows)
            run: Callable[[], object] | None = None
            try:
                if error is None:
                    weights = weights or random_weights(graph, layer)
                    run = prepared_call(prepare, graph, layer, span, weights, needs)
                    run()
            except Exception as raised:  # noqa: BLE001 (all ranks must learn of it)
                error = _explained(layer, span, raised)
            # Besides agreeing, this starts the window on all ranks at the same time.
            agree(comm, error)
            try:
                if run is not None:
                    timings[signature, rows] = time_calls(run, window_s, cooling.sum)
            except Exception as raised:  # noqa: BLE001 (all ranks learn of it at the next point)
                error = _explained(layer, span, raised)
    agree(comm, error)
    own = points_of(timings, threads=torch.get_num_threads())
    kinds = [(device.host, device.cpu, device.threads) for device in devices]
    measured = pooled(comm.allgather(own), kinds)
    return Computation(
        tuple(_costs(points) for points in measured),
        tuple(points.stretch for points in measured),
    )


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
    cpu_s: list[float] = []
    wall_s: list[float] = []
    began_s, used_s = time.perf_counter(), time.thread_time()
    while not _enough(len(wall_s), time.perf_counter() - began_s, window_s):
        between()
        cpu_0, wall_0 = time.thread_time(), time.perf_counter()
        run()
        wall_1, cpu_1 = time.perf_counter(), time.thread_time()
        wall_s.append(wall_1 - wall_0)
        cpu_s.append(cpu_1 - cpu_0)
    # The core is often lost in the system call that reads the processor time, so the
    # stretch must be that of the whole window, not of the calls.
    passed_s, used_s = time.perf_counter() - began_s, time.thread_time() - used_s
    return Timing(
        max(statistics.median(cpu_s), 1e-9),
        max(statistics.median(wall_s), 1e-9),
        passed_s / max(used_s, 1e-9),
    )


def _enough(calls: int, passed_s: float, window_s: float) -> bool:
    if calls < _FEWEST_CALLS or passed_s < window_s:
        return False
    return calls >= _ENOUGH_CALLS or passed_s >= _PATIENCE * window_s


@dataclass(frozen=True)
class Points:
    """One rank's results: (signature, rows) -> seconds, and the stretch that is in them."""

    seconds: Mapping[tuple[str, int], float]
    stretch: float


def points_of(timings: Mapping[tuple[str, int], Timing], *, threads: int) -> Points:
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
    """Means over the ranks of one kind whose total is within 15 % of their kind's median.

    A rank that differs more, say because it was given a slower core, keeps its own.
    """
    totals = [sum(points.seconds.values()) for points in measured]
    result = list(measured)
    for kind in dict.fromkeys(kinds):
        members = [rank for rank, other in enumerate(kinds) if other == kind]
        typical = statistics.median(totals[rank] for rank in members)
        alike = [rank for rank in members if abs(totals[rank] - typical) <= _ALIKE * typical]
        for rank in alike:
            result[rank] = Points(
                {
                    key: statistics.fmean(measured[other].seconds[key] for other in alike)
                    for key in measured[rank].seconds
                },
                statistics.fmean(measured[other].stretch for other in alike),
            )
    return tuple(result)


def _costs(points: Points) -> dict[str, LayerCost]:
    """Lines through the points of every signature."""
    found: dict[str, list[tuple[int, float]]] = {}
    for (signature, rows), seconds in points.seconds.items():
        found.setdefault(signature, []).append((rows, seconds))
    return {signature: fit_affine(pairs) for signature, pairs in found.items()}


def prepared_call(
    prepare: Prepare,
    graph: Graph,
    layer: Layer,
    span: Span,
    weights: Mapping[str, torch.Tensor],
    needs: Needs,
) -> Callable[[], object]:
    """A call of the layer's kernel on random inputs of the right rows."""
    kernel = prepare(graph, layer, span, weights, needs)
    inputs = [
        _random_input(graph.by_name[name], needed)
        for name, needed in zip(layer.inputs, kernel.needs, strict=True)
    ]

    def run() -> object:
        return kernel(*inputs)

    return run


def random_weights(graph: Graph, layer: Layer) -> dict[str, torch.Tensor]:
    return {name: _random_weight(graph.weight_specs[name]) for name in layer.weights}


def _random_weight(spec: TensorSpec) -> torch.Tensor:
    """Normal, scaled so that activations keep their size; vectors (variances!) positive."""
    tensor = _filled(torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)))
    if not tensor.is_floating_point():
        return tensor
    if tensor.ndim < 2:
        return tensor.abs_().add_(0.5)
    return tensor.mul_((tensor[0].numel() or 1) ** -0.5)


def _random_input(producer: Layer, needed: Span) -> torch.Tensor:
    # Of summands a kernel takes the combined whole.
    rows = producer.out.rows if producer.combine else needed.rows
    return _filled(buffers.empty(producer.out, rows))


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    """Normal numbers; zeros where the type has none (indices must stay in range).

    One block is drawn and repeated in memory, which is some ten times faster.
    """
    elements = tensor.numel()
    if not elements or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.zero_()
    block = torch.empty(min(elements, _BLOCK), dtype=tensor.dtype)
    block.normal_(generator=torch.Generator().manual_seed(0))
    memory = tensor.as_strided((elements,), (1,))  # dense, whatever the order of dimensions
    whole = elements - elements % len(block)
    memory[:whole].view(-1, len(block)).copy_(block)
    memory[whole:].copy_(block[: elements - whole])
    return tensor


def _explained(layer: Layer, span: Span, error: Exception) -> EdgeflowError:
    if isinstance(error, EdgeflowError):
        return error
    lines = str(error).strip().splitlines() or [""]
    return ProfileError(
        f"layer {layer.name} cannot be measured with rows {span}: "
        f"{type(error).__name__}: {lines[0]}"
    )
