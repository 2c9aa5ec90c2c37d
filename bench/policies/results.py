"""What was measured, cell by cell, and the file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.report.files import write_file

OURS, SINGLE = "joint", "single"


@dataclass(frozen=True)
class Device:
    """One emulated device's part of one request; typical times.

    ``send_ms`` is how long its link is busy with what it sends, by the bandwidth of the file;
    messages move while devices compute.
    """

    gflops: float
    compute_ms: float
    wait_ms: float
    send_ms: float
    bytes_sent: int
    messages: int
    rows: int


@dataclass(frozen=True)
class Outcome:
    """What one partitioner's plan was predicted to take, and what it took.

    ``alike`` names another partitioner with the very same plan, which was measured once.
    ``late`` is by what share of their time units ended late, ``on_time`` the share of them that
    did so by at most 3 %. ``error`` is the answer's, relative to its largest value, and
    ``allowed`` what it may be.
    """

    partitioner: str
    predicted_ms: float
    all_ms: tuple[float, ...]
    devices: tuple[Device, ...]
    late: float
    on_time: float
    error: float
    allowed: float
    alike: str | None = None

    def quicker(self, times: int) -> Outcome:
        """What it is where everything is so many times faster."""
        devices = (
            replace(
                device, gflops=device.gflops * times, compute_ms=device.compute_ms / times,
                wait_ms=device.wait_ms / times, send_ms=device.send_ms / times,
            )
            for device in self.devices
        )  # fmt: skip
        return replace(
            self, predicted_ms=self.predicted_ms / times,
            all_ms=tuple(ms / times for ms in self.all_ms), devices=tuple(devices),
        )  # fmt: skip

    @property
    def median_ms(self) -> float:
        return float(median(self.all_ms))

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a share of the median."""
        low, high = np.percentile(self.all_ms, (10, 90))
        return float(high - low) / self.median_ms

    @property
    def excess(self) -> float:
        """By what share it took longer than predicted; negative: less long."""
        return self.median_ms / self.predicted_ms - 1

    @property
    def right(self) -> bool:
        return self.error <= self.allowed

    def check(self) -> None:
        """Whether latencies and errors are figures that can be shown.

        Raises
        ------
        ArithmeticError, TypeError, ValueError
            Where they are not, as in a damaged file.
        """
        if not all(map(math.isfinite, (self.excess, self.spread, self.error, self.allowed))):
            raise ValueError("a figure is not finite")

    @property
    def used(self) -> int:
        """How many devices have rows."""
        return sum(device.rows > 0 for device in self.devices)


@dataclass(frozen=True)
class Cell:
    """A model on an emulated cluster.

    ``link`` are latency (ms) and bandwidth (Mbit/s) of one of its links as the testbed measured
    them; ``refused`` says why a partitioner has no plan. ``facts`` are what the numbers depend
    on, ``later`` among them those of partitioners that were measured later; ``took_s`` is how long
    all of it took.
    """

    model: str
    cluster: str
    kind: str
    bandwidth_mbps: float
    gflops: tuple[float, ...]
    link: tuple[float, float] | None
    outcomes: tuple[Outcome, ...]
    refused: Mapping[str, str]
    facts: Mapping[str, Any]
    took_s: float
    slowdown: int = 1

    @property
    def key(self) -> str:
        return f"{self.model} on {self.cluster}"

    @property
    def had(self) -> tuple[str, ...]:
        """Who has been asked for a plan."""
        return (*(outcome.partitioner for outcome in self.outcomes), *self.refused)

    def with_more(self, later: Cell) -> Cell:
        """With partitioners that were measured later; their facts are beside this cell's own."""
        since = {**self.facts.get("later", {}), **dict.fromkeys(later.had, later.facts)}
        return replace(
            self, outcomes=(*self.outcomes, *later.outcomes),
            refused={**self.refused, **later.refused},
            facts={**self.facts, "later": since}, took_s=self.took_s + later.took_s,
        )  # fmt: skip

    def of(self, partitioner: str) -> Outcome | None:
        return next((o for o in self.outcomes if o.partitioner == partitioner), None)

    def speedup(self, partitioner: str) -> float | None:
        """Over the best single device, measured beside it."""
        alone, other = self.of(SINGLE), self.of(partitioner)
        return alone.median_ms / other.median_ms if alone and other else None

    @property
    def best_other(self) -> Outcome | None:
        """The fastest, as measured, of all but ours."""
        others = (o for o in self.outcomes if o.partitioner != OURS)
        return min(others, key=lambda o: o.median_ms, default=None)

    def gain(self, partitioner: str) -> float | None:
        """How many times as long as ours another plan took."""
        ours, other = self.of(OURS), self.of(partitioner)
        return other.median_ms / ours.median_ms if ours and other else None


@dataclass(frozen=True)
class Results:
    """Finished cells."""

    cells: tuple[Cell, ...] = ()

    def of(self, model: str, cluster: str) -> Cell | None:
        return next((c for c in self.cells if (c.model, c.cluster) == (model, cluster)), None)

    def plus(self, cell: Cell) -> Results:
        """With this cell in place of an older one."""
        others = tuple(c for c in self.cells if c.key != cell.key)
        return replace(self, cells=(*others, cell))

    def joined(self, cell: Cell, *, again: bool) -> Results:
        """With what was measured of a cell: beside what was there of the same, or in its place."""
        older = self.of(cell.model, cell.cluster)
        if again or older is None:
            return self.plus(cell)
        same = (older.gflops, older.slowdown) == (cell.gflops, cell.slowdown)
        return self.plus(older.with_more(cell) if same else cell)

    def save(self, path: Path) -> None:
        """Write all, a cell a line, in an order that does not depend on when they were made.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        cells = sorted(self.cells, key=lambda c: (c.cluster, c.model))
        lines = ",\n".join(json.dumps(_rounded(asdict(cell)), allow_nan=False) for cell in cells)
        text = f'{{"emulated": true, "cells": [\n{lines}\n]}}\n'
        write_file(path, "the results", lambda file: file.write(text.encode()))


def load_results(path: Path) -> Results:
    """What :meth:`Results.save` wrote; nothing where there is no such file.

    Raises
    ------
    InputError
        The file cannot be read, or is another one.
    """
    try:
        found = json.loads(path.read_text())
        cells = tuple(map(cell_from, found["cells"]))
        for outcome in (outcome for cell in cells for outcome in cell.outcomes):
            outcome.check()
    except FileNotFoundError:
        return Results()
    except (OSError, ArithmeticError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not a file of results ({type(error).__name__}): name another one, or "
            "remove it"
        ) from None
    return Results(cells)


def cell_from(values: Mapping[str, Any]) -> Cell:
    """A cell from what :func:`dataclasses.asdict` made of it."""
    link = values["link"]
    return Cell(**(
        dict(values)
        | {
            "gflops": tuple(values["gflops"]),
            "link": None if link is None else tuple(link),
            "outcomes": tuple(map(outcome_from, values["outcomes"])),
        }
    ))  # fmt: skip


def outcome_from(values: Mapping[str, Any]) -> Outcome:
    devices = tuple(Device(**device) for device in values["devices"])
    return Outcome(**(dict(values) | {"devices": devices, "all_ms": tuple(values["all_ms"])}))


def _rounded(value: Any) -> Any:
    """With six significant digits, which is more than any clock here gives."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
