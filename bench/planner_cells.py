"""One model on one cluster under every partitioner, and a file of such results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeflow_mpi.cluster.cluster_file import ClusterSpec, cluster_profile
from edgeflow_mpi.errors import InputError, PlanError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.report.candidates import Task
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.planning import compare_partitioners

OURS = "joint"
PARTITIONERS = (
    OURS, "lp", "exact", "equal", "proportional", "gather", "fused", "aofl", "layers", "single",
)  # fmt: skip
"""Who may be somebody's choice: neither ``random``, nor ``one-shot``, the lesser ``lp``."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Outcome:
    """What one partitioner's plan is predicted to do.

    ``speedup`` (over the best single device) is None where none has the memory, ``gap`` (a
    share) where there is no bound.
    """

    partitioner: str
    predicted_ms: float
    speedup: float | None
    gap: float | None
    devices_used: int
    planning_s: float
    simulations: int


@dataclass(frozen=True)
class Cell:
    """A model on a cluster.

    ``refused`` says why a partitioner has no plan that fits into the devices' memory; where
    none has, ``outcomes`` is empty. ``took_s`` is how long all of this took.
    """

    model: str
    cluster: str
    devices: int
    single_ms: float | None
    bound_ms: float
    outcomes: tuple[Outcome, ...]
    refused: Mapping[str, str]
    took_s: float

    def of(self, partitioner: str) -> Outcome | None:
        return next((o for o in self.outcomes if o.partitioner == partitioner), None)

    @property
    def best_other(self) -> Outcome | None:
        """The fastest plan that is not ours, the single device's among them."""
        others = (o for o in self.outcomes if o.partitioner != OURS)
        return min(others, key=lambda o: o.predicted_ms, default=None)

    def gain(self, partitioner: str | None = None) -> float | None:
        """How many times as long as ours another plan takes; the best one's unless named."""
        other = self.best_other if partitioner is None else self.of(partitioner)
        ours = self.of(OURS)
        return other.predicted_ms / ours.predicted_ms if ours and other else None

    @property
    def is_slower(self) -> bool:
        """Whether some other plan takes less time than ours, as none may."""
        gain = self.gain()
        if gain is None:
            return self.best_other is not None
        return gain < 1 - _ROUNDING


@dataclass(frozen=True)
class Timing:
    """How fast planning is, on one core of ``processor``.

    ``evaluations_s[model]`` are evaluations a second of a plan for ``devices`` devices.
    ``planning`` are model, number of devices, and the seconds that the joint planner alone
    takes with what it searches by default.
    """

    processor: str
    devices: int
    evaluations_s: Mapping[str, float]
    planning: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True)
class Results:
    """Finished cells, all made under the same conditions."""

    plan_seconds: float
    seed: int
    timing: Timing | None = None
    cells: tuple[Cell, ...] = ()

    def has(self, model: str, cluster: str) -> bool:
        return any(cell.model == model and cell.cluster == cluster for cell in self.cells)

    def plus(self, cell: Cell) -> Results:
        return replace(self, cells=(*self.cells, cell))

    def save(self, path: Path) -> None:
        """Write all, one cell a line, in an order that does not depend on when they were made.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        head = asdict(replace(self, cells=()))
        del head["cells"]
        cells = sorted(self.cells, key=lambda cell: (cell.cluster, cell.model))
        lines = ",\n".join(json.dumps(_rounded(asdict(cell))) for cell in cells)
        text = f'{json.dumps(head)[:-1]}, "cells": [\n{lines}\n]}}\n'
        write_file(path, "the results", lambda file: file.write(text.encode()))


def load_results(path: Path) -> Results | None:
    """What :meth:`Results.save` wrote; None where there is no such file.

    Raises
    ------
    InputError
        The file cannot be read, or is another one.
    """
    try:
        found = json.loads(path.read_text())
        return Results(
            plan_seconds=float(found["plan_seconds"]),
            seed=int(found["seed"]),
            timing=None if found["timing"] is None else _timing(found["timing"]),
            cells=tuple(_cell(cell) for cell in found["cells"]),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"the results {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not a file of results of this command: name another one, or remove it"
        ) from error


def _rounded(value: Any) -> Any:
    """Floats with seven digits, which are enough to print and keep the order of plans."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _cell(found: Mapping[str, Any]) -> Cell:
    outcomes = tuple(Outcome(**outcome) for outcome in found["outcomes"])
    return Cell(**{**found, "outcomes": outcomes})


def _timing(found: Mapping[str, Any]) -> Timing:
    planning = tuple((str(m), int(n), float(s)) for m, n, s in found["planning"])
    return Timing(**{**found, "planning": planning})


def measure_cell(
    model: str, graph: Graph, cluster: str, spec: ClusterSpec, plan_seconds: float, seed: int
) -> Cell:
    """Plan ``graph`` with every partitioner, and judge all plans by the same model of time."""
    begun_s = time.perf_counter()
    profile = cluster_profile(spec, graph)
    task = Task(graph, Needs(graph), profile, spec.excluded, seed, plan_seconds)
    devices = len(task.allowed)
    try:
        found = compare_partitioners(task, PARTITIONERS, NoProgress())
    except PlanError as error:
        spent_s = time.perf_counter() - begun_s
        return Cell(model, cluster, devices, None, 0.0, (), {"all": str(error)}, spent_s)
    return Cell(
        model,
        cluster,
        devices,
        None if found.single is None else found.single.predicted_s * 1e3,
        found.lower_bound_s * 1e3,
        tuple(
            Outcome(
                candidate.partitioner,
                candidate.predicted_s * 1e3,
                found.speedup(candidate),
                found.gap(candidate) if found.lower_bound_s else None,
                len(candidate.used),
                candidate.planning_s,
                candidate.simulations,
            )
            for candidate in found.candidates
        ),
        {item.partitioner: item.reason for item in found.refused},
        time.perf_counter() - begun_s,
    )
