"""What was measured, case by case, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.overlap.account import Share
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.report.files import write_file


@dataclass(frozen=True)
class Plan:
    """One plan's requests, with overlap and without.

    Attributes
    ----------
    latency_ms, blocking_ms : of all requests; ``blocking`` with a transport that hides nothing.
    hidden_ms : in a model of time where messages take none, with the times that units took.
    linked_ms, linked_blocking_ms : in that model with messages that take what their links say,
        which move while units run, and which are waited for.
    total, inner : see :class:`bench.overlap.account.Account`; medians.
    messages, bytes_sent : of one request.
    late : by what share of their time paced units ended late.
    """

    name: str
    latency_ms: tuple[float, ...]
    blocking_ms: tuple[float, ...]
    hidden_ms: float
    linked_ms: float
    linked_blocking_ms: float
    total: Share
    inner: Share
    messages: int
    bytes_sent: int
    late: float

    @staticmethod
    def nothing() -> Plan:
        """What ranks other than 0 have found."""
        empty = Share(0.0, 0.0, 0.0, 0.0)
        return Plan("", (), (), 0.0, 0.0, 0.0, empty, empty, 0, 0, 0.0)

    @property
    def measured_ms(self) -> float:
        return float(median(self.latency_ms))

    @property
    def without_ms(self) -> float:
        """The latency where nothing is hidden."""
        return float(median(self.blocking_ms))


def plan_from(fields: Mapping[str, Any]) -> Plan:
    """The plan that ``asdict`` made ``fields`` of."""
    shares = {name: Share(**fields[name]) for name in ("total", "inner")}
    lists = {name: tuple(fields[name]) for name in ("latency_ms", "blocking_ms")}
    return Plan(**{**fields, **shares, **lists})


@dataclass(frozen=True)
class Case:
    """A model in one setting, with Open MPI's progress thread or without."""

    setting: str
    model: str
    progress_thread: bool
    plans: tuple[Plan, ...]
    started: str = ""

    @property
    def key(self) -> tuple[str, str, bool]:
        return self.setting, self.model, self.progress_thread


@dataclass(frozen=True)
class Results:
    cases: tuple[Case, ...] = ()
    facts: Mapping[str, Any] | None = None

    def of(self, key: tuple[str, str, bool]) -> Case | None:
        return next((case for case in self.cases if case.key == key), None)

    def plus(self, case: Case) -> Results:
        """With this case in place of an older one of its kind."""
        others = tuple(one for one in self.cases if one.key != case.key)
        return Results((*others, case), self.facts)

    def save(self, path: Path) -> None:
        text = json.dumps({"facts": self.facts, "cases": [asdict(c) for c in self.cases]}, indent=1)
        write_file(path, "the results", lambda file: file.write(text.encode()))


def load_results(path: Path) -> Results:
    """What the file holds; nothing where there is none.

    Raises
    ------
    InputError
        If it is no such file.
    """
    if not path.exists():
        return Results()
    try:
        content = json.loads(path.read_text())
        cases = tuple(
            Case(**{**case, "plans": tuple(plan_from(plan) for plan in case["plans"])})
            for case in content["cases"]
        )
        return Results(cases, content["facts"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a file of results: {error}") from None
