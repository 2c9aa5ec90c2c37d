"""What kernels take on this machine: measured once, by the fastest engine, and kept.

A profile measures every layer at a few numbers of rows and goes by straight lines between them.
A search finds the numbers of rows where that is too low: a kernel's time grows by steps, with its
tiles. Where slow devices are emulated, one machine's kernels are the prices of all devices, so that
there is time to measure nearly every number of rows, and to keep what was found for later jobs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from edgeflow_mpi.cache import Cache, code_version
from edgeflow_mpi.cluster.agree import agree
from edgeflow_mpi.cluster.comm import Communicator
from edgeflow_mpi.cluster.devices import cpu_model
from edgeflow_mpi.cluster.measure import centred, explained, time_calls
from edgeflow_mpi.cluster.random_data import prepared_call, random_weights
from edgeflow_mpi.cluster.trial import Trial
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.prepare import attempt, prepare
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.spans import Span

Kind: TypeAlias = tuple[str, int]
"""Signature of a layer and all of its rows: parts of a product may be of rows or of channels."""

_MEASURING = ("measure", "prices", "random_data", "trial")
"""Modules on which it depends what is measured."""
TURNS = 3
"""How often every kernel is measured."""
_WINDOW_S = 0.002
_CLOSE = 1.25
_ALL_UP_TO = 32
_PAIRS = ((32, 64, 8), (64, 128, 16), (128, 1 << 30, 32))
_STEP = 1.25
_PANEL = 64
"""Panels of output channels have at most so many."""
_INPUT_STEPS = 64
"""Into so many steps the inputs of a wide linear layer are cut."""
_MAP_CHANNELS = 2048
"""More are those of wide linear layers, where one panel hardly matters."""


@dataclass(frozen=True)
class Price:
    """Processor time of a kernel, and the engine that takes so little."""

    seconds: float
    engine: str


@dataclass(frozen=True)
class Subject:
    """A layer, as it is in a graph, and the numbers of its rows that are to be priced."""

    graph: Graph
    needs: Needs
    layer: Layer
    counts: tuple[int, ...]

    @property
    def kind(self) -> Kind:
        return self.graph.signatures[self.layer.name], self.layer.rows


class Prices:
    """Prices by kind and rows; the same on all ranks of one machine.

    Parameters
    ----------
    engines : names of those that may compute.
    cache : where rank 0 finds what earlier jobs have measured, and keeps what this one does.
    fresh : whether to measure although there is something. Of both, the smaller price counts: a
        kernel that took less at some moment was disturbed at the other.
    """

    def __init__(self, engines: Sequence[str], cache: Cache, *, fresh: bool = False) -> None:
        self._engines = tuple(engines)
        self._cache = cache
        self._recalled, self._fresh = False, fresh
        self._known: dict[Kind, dict[int, Price]] = {}
        self._prices: dict[Kind, dict[int, Price]] = {}

    def of(self, kind: Kind) -> Mapping[int, Price]:
        """Rows -> price, of all that is known.

        A kernel takes no longer than that of more rows: what says otherwise was disturbed.
        """
        return self._prices.get(kind, {})

    def least_s(self, subjects: Iterable[Subject]) -> float:
        """The cheapest call among these: what one costs whatever it computes; 0 if there is none.

        Whatever else earlier jobs have left does not matter.
        """
        return min((self.of(one.kind)[rows].seconds for one in subjects for rows in one.counts),
                   default=0.0)  # fmt: skip

    @torch.inference_mode()
    def learn(self, comm: Communicator, progress: Progress, subjects: Iterable[Subject]) -> None:
        """Measure what is not known yet; collective.

        Rank 0 measures: kernels that run side by side take memory from each other, and devices do
        not. Every kernel has several turns, far from one another, and its best one counts: other
        work slows a machine down by a quarter for seconds, and prices of different moments are
        compared.

        Raises
        ------
        EdgeflowError
            On all ranks, when a kernel fails.
        """
        subjects = tuple(subjects)
        self._recall(comm, subjects)
        missing = _missing(subjects, {} if self._fresh else self._known)
        self._fresh = False
        if not missing:
            return
        found: dict[Kind, dict[int, Price]] = {}
        error: Exception | None = None
        try:
            if comm.Get_rank() == 0:
                found = self._measured(missing, progress)
        except Exception as raised:  # noqa: BLE001 (all ranks must learn of it)
            error = raised
        agree(comm, error)
        self._take(comm.bcast(found, root=0))
        if comm.Get_rank() == 0:
            self._keep(subjects)

    def _take(self, found: Mapping[Kind, dict[int, Price]]) -> None:
        for kind, prices in found.items():
            self._known[kind] = prices
            self._prices[kind] = _undisturbed(prices)

    def _measured(
        self, missing: Sequence[Subject], progress: Progress
    ) -> dict[Kind, dict[int, Price]]:
        """All that is known of these, after several turns."""
        found: dict[Kind, dict[int, Price]] = {}
        for turn in range(1, TURNS + 1):
            for count, one in enumerate(missing, 1):
                progress.update(
                    f"turn {turn} of {TURNS}: layer {count} of {len(missing)}, {one.layer.name}, "
                    f"{len(one.counts)} numbers of rows"
                )
                known = found.setdefault(one.kind, dict(self._known.get(one.kind, {})))
                try:
                    known |= self._again(one, known) if turn > 1 else self._first(one, known)
                except Exception as raised:
                    raise explained(one.layer, raised) from raised
        return found

    def _first(self, subject: Subject, known: Mapping[int, Price]) -> dict[int, Price]:
        """Prices by the best engine; between two numbers of rows by the best of these two."""
        graph, layer = subject.graph, subject.layer
        weights = random_weights(graph, layer)
        found = dict(known)
        for rows in sorted(subject.counts, key=lambda rows: (not _tried(layer, rows), -rows)):
            span = _span(layer, rows)
            near = set() if _tried(layer, rows) else _around(found, rows)
            if near:
                kernels = [
                    prepare(graph, layer, span, weights, subject.needs, engine)
                    for engine in sorted(near)
                ]
                runs = {one.engine: prepared_call(graph, layer, one) for one in kernels}
                for run in runs.values():
                    run()
            else:
                trial = Trial(attempt, self._engines, graph, layer, subject.needs)
                tried = trial.candidates(span, weights, lambda _: None)
                most_s = _CLOSE * min(one.trial_s for one in tried)
                runs = {one.engine: one.run for one in tried if one.trial_s <= most_s}
            measured = [
                Price(time_calls(run, _WINDOW_S).cpu_s, engine) for engine, run in runs.items()
            ]
            if rows in known:
                measured.append(known[rows])
            found[rows] = min(measured, key=lambda price: (price.seconds, price.engine))
        return found

    @staticmethod
    def _again(subject: Subject, known: Mapping[int, Price]) -> dict[int, Price]:
        """The same kernels at another moment."""
        graph, layer = subject.graph, subject.layer
        weights = random_weights(graph, layer)
        found = {}
        for rows in subject.counts:
            before = known[rows]
            kernel = prepare(
                graph, layer, _span(layer, rows), weights, subject.needs, before.engine
            )
            run = prepared_call(graph, layer, kernel)
            run()
            seconds = time_calls(run, _WINDOW_S).cpu_s
            found[rows] = Price(min(before.seconds, seconds), before.engine)
        return found

    def _recall(self, comm: Communicator, subjects: Sequence[Subject]) -> None:
        """What earlier jobs have left, once; collective."""
        if self._recalled:
            return
        self._recalled = True
        text = self._cache.read_text(*self._entry(subjects)) if comm.Get_rank() == 0 else None
        text = comm.bcast(text, root=0)
        if text is not None:
            self._take(_parsed(text))
            if not self._fresh:
                self._cache.used.append("prices")

    def _keep(self, subjects: Sequence[Subject]) -> None:
        lines = [
            f"{signature} {whole} {rows} {price.seconds!r} {price.engine}"
            for (signature, whole), prices in sorted(self._known.items())
            for rows, price in sorted(prices.items())
        ]
        self._cache.keep_text(*self._entry(subjects), "\n".join(lines) + "\n")

    def _entry(self, subjects: Sequence[Subject]) -> tuple[str, object, str]:
        name = subjects[0].graph.name if subjects else ""
        versions = (
            str(torch.__version__),
            code_version("graph", "kernels", *(f"cluster/{name}" for name in _MEASURING)),
        )
        return "prices", (name, cpu_model(), self._engines, versions), ".txt"


def dense_rows(layer: Layer) -> tuple[int, ...]:
    """Nearly every number of rows: all small ones, and then those by which steps begin and end."""
    if not layer.splits:
        return (layer.rows,)
    whole = layer.rows
    found = {whole, *range(1, min(whole, _ALL_UP_TO) + 1)}
    found |= {round(whole / parts) for parts in range(1, 9)} - {0}
    for low, high, step in _PAIRS:
        for rows in range(low, min(high, whole), step):
            found |= {rows, rows + 1}
    return tuple(sorted(found))


def dense_shares(layer: Layer) -> tuple[int, ...]:
    """Channels or inputs in steps of a quarter, and even shares; of maps also whole panels, and one
    channel more, which takes another panel. Where a map's channels are the inputs of a wide linear
    layer, steps are small: a channel is a megabyte of weights, and all ranks wait for the last.
    """
    whole = layer.rows
    found = {round(whole / parts) for parts in range(1, 9)}
    if layer.divided == "inputs" and whole <= _MAP_CHANNELS:
        step = max(1, whole // _INPUT_STEPS)
        found |= set(range(step, whole, step))
    elif whole <= _MAP_CHANNELS:
        step = max(_PANEL, whole // 16)
        for channels in range(step, whole, step):
            found |= {channels, channels + 1}
    share = float(whole)
    while share > max(whole / 32, 1):
        found.add(round(share))
        share /= _STEP
    return tuple(sorted(found - {0}))


def _tried(layer: Layer, rows: int) -> bool:
    """Whether all engines are tried for so many rows."""
    return rows == layer.rows or rows & (rows - 1) == 0


def _around(known: Mapping[int, Price], rows: int) -> set[str]:
    """The engines at the next known numbers of rows below and above."""
    below = max((count for count in known if count < rows), default=None)
    above = min((count for count in known if count > rows), default=None)
    return {known[count].engine for count in (below, above) if count is not None}


def _span(layer: Layer, rows: int) -> Span:
    return centred(layer.rows, rows) if layer.splits else Span.of(0, layer.rows)


def _missing(
    subjects: Iterable[Subject], known: Mapping[Kind, Mapping[int, Price]]
) -> list[Subject]:
    """Every kind once, with the numbers of rows that are not known."""
    wanted: dict[Kind, Subject] = {}
    for one in subjects:
        counts = {*one.counts, *(wanted[one.kind].counts if one.kind in wanted else ())}
        left = tuple(sorted(counts - known.get(one.kind, {}).keys()))
        if left:
            wanted[one.kind] = Subject(one.graph, one.needs, one.layer, left)
    return [wanted[kind] for kind in sorted(wanted)]


def _undisturbed(found: Mapping[int, Price]) -> dict[int, Price]:
    """No price above that of more rows."""
    least_s, lowered = math.inf, {}
    for rows in sorted(found, reverse=True):
        least_s = min(least_s, found[rows].seconds)
        lowered[rows] = replace(found[rows], seconds=least_s)
    return lowered


def _parsed(text: str) -> dict[Kind, dict[int, Price]]:
    """What was kept; nothing, if it is not in the form in which this version keeps it."""
    found: dict[Kind, dict[int, Price]] = {}
    try:
        for line in text.splitlines():
            signature, whole, rows, seconds, engine = line.split()
            prices = found.setdefault((signature, int(whole)), {})
            prices[int(rows)] = Price(float(seconds), engine)
    except ValueError:
        return {}
    return found
