"""Which engines are worth measuring for a layer: all that can do it have a short trial.

An engine that is clearly slower than another in its trial is not timed, one that was much
slower at one number of rows is not tried at others, and one whose result is too far from
plain torch's is not used at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from edgeflow_mpi.cluster.random_data import PreparedCall, prepared_call
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.names import DEFAULT
from edgeflow_mpi.kernels.registry import error_bound
from edgeflow_mpi.spans import Span

_PLAIN = "aten"
_CALLS = 2
_LONG_S = 0.004
_CLOSE = 1.25
_HOPELESS = 1.6


class Attempt(Protocol):
    """Makes a kernel: :func:`edgeflow_mpi.kernels.prepare.attempt` or a stand-in."""

    def __call__(
        self,
        graph: Graph,
        layer: Layer,
        rows: Span,
        weights: Mapping[str, torch.Tensor],
        needs: Needs,
        engine: str,
    ) -> Kernel | None: ...


@dataclass(frozen=True)
class Candidate:
    """One engine's kernel of a span, ready to be called, and its shortest time in the trial."""

    engine: str
    run: PreparedCall
    trial_s: float


@dataclass(frozen=True)
class _Called:
    """A kernel, a call of it, and what the first call returned."""

    kernel: Kernel
    run: PreparedCall
    result: torch.Tensor


class Trial:
    """The engines that have not been ruled out for one layer.

    Parameters
    ----------
    attempt : makes kernels.
    engines : names, in the order in which they are tried.
    graph, layer, needs : what the kernels are of.
    """

    def __init__(
        self, attempt: Attempt, engines: Sequence[str], graph: Graph, layer: Layer, needs: Needs
    ) -> None:
        self._attempt = attempt
        self._left = list(engines)
        self._graph, self._layer, self._needs = graph, layer, needs
        self._checked = False

    def candidates(
        self,
        rows: Span,
        weights: Mapping[str, torch.Tensor],
        between: Callable[[PreparedCall], object],
    ) -> tuple[Candidate, ...]:
        """Those that can do ``rows``, each called a few times, ``between`` of it before each call.

        Where the only ones that are asked for cannot do it, the default engine does.
        """
        made = [self._called(kernel) for kernel in self._kernels(rows, weights)]
        if not self._checked:
            made = self._accurate(made, rows, weights)
            self._checked = True
        # Where there is no choice there is nothing to find out.
        seconds = _shortest([one.run for one in made], between) if len(made) > 1 else [0.0]
        tried = [
            Candidate(one.kernel.engine, one.run, trial_s)
            for one, trial_s in zip(made, seconds, strict=True)
        ]
        best_s = min(candidate.trial_s for candidate in tried)
        good = {one.engine for one in tried if one.trial_s <= _HOPELESS * best_s}
        self._left = [name for name in self._left if name in good] or [DEFAULT]
        return tuple(tried)

    def _called(self, kernel: Kernel) -> _Called:
        """Its first call also makes what is made on the first call."""
        run = prepared_call(self._graph, self._layer, kernel)
        return _Called(kernel, run, run())

    def _kernels(self, rows: Span, weights: Mapping[str, torch.Tensor]) -> list[Kernel]:
        made = [self._kernel(rows, weights, engine) for engine in self._left]
        kernels = {kernel.engine: kernel for kernel in made if kernel is not None}
        if not kernels:
            default = self._kernel(rows, weights, DEFAULT)
            assert default is not None
            kernels = {default.engine: default}
        return list(kernels.values())

    def _kernel(
        self, rows: Span, weights: Mapping[str, torch.Tensor], engine: str
    ) -> Kernel | None:
        return self._attempt(self._graph, self._layer, rows, weights, self._needs, engine)

    def _accurate(
        self, called: list[_Called], rows: Span, weights: Mapping[str, torch.Tensor]
    ) -> list[_Called]:
        """Without those whose result is too far from plain torch's, where there is a choice."""
        if len(called) == 1:
            return called
        plain = next((one for one in called if one.kernel.engine == _PLAIN), None)
        if plain is None:
            kernel = self._kernel(rows, weights, _PLAIN)
            assert kernel is not None
            plain = self._called(kernel)
        good = [
            one
            for one in called
            if one is plain
            or relative_error(one.result, plain.result) <= error_bound(one.kernel.engine)
        ]
        good = good or [plain]
        self._left = [one.kernel.engine for one in good]
        return good


def relative_error(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; infinite where ``made`` is not finite."""
    difference = float((made - expected).abs().max())
    scale = float(expected.abs().max())
    if difference != difference:
        return float("inf")
    return difference / scale if scale else difference


def close(trials: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """Engines that are near the best of their rank on some rank, in the order first met.

    ``trials`` has every rank's engine -> seconds; all ranks time all of these engines, so that
    ranks of a kind can share their results.
    """
    found: dict[str, None] = {}
    for seconds in trials:
        best_s = min(seconds.values(), default=0.0)
        found |= {name: None for name, spent_s in seconds.items() if spent_s <= _CLOSE * best_s}
    return tuple(found)


def _shortest(
    runs: Sequence[PreparedCall], between: Callable[[PreparedCall], object]
) -> list[float]:
    """Seconds of the shorter of two calls of each, in turn; of one call that takes long.

    Of a single thread it is the processor time: no call looks slow because it was interrupted.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    shortest_s = [math.inf] * len(runs)
    for _ in range(_CALLS):
        for i, run in enumerate(runs):
            if shortest_s[i] < math.inf and shortest_s[i] > _LONG_S:
                continue
            between(run)
            began_s = clock()
            run()
            shortest_s[i] = min(shortest_s[i], clock() - began_s)
    return shortest_s
