"""What was measured, as a file: one entry a model, so that a run can be continued."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines.contenders import ENGINES, OURS
from bench.engines.rounds import Outcome
from edgeflow_mpi.report.files import write_file

Entry = Mapping[str, Any]
"""What is known of one model."""

TARGETS: Mapping[str, Mapping[str, float]] = {
    "resnet50": {"one": 0.97, "two": 1.0, "gain": 1.8},
    "inception_v3": {"one": 1.0, "two": 1.05, "gain": 1.8},
    "vgg16": {"one": 1.2, "two": 1.15, "gain": 1.8},
    "mobilenet_v2": {"one": 1.3, "two": 1.4, "gain": 1.5},
}
"""Aims: ours over the best engine on one core and on two (at most); two ranks over one (at
least)."""


def entry(outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One model's part of the file; ``facts`` are what was known before."""
    lines = {}
    for line in outcome.lines:
        values = asdict(line)
        values["times_ms"] = [[round(t, 3) for t in turn] for turn in line.times_ms]
        lines[line.contender.name] = {
            key: value for key, value in values.items() if key != "contender" and value
        }
    return {
        **facts,
        "load_before": outcome.load_before,
        "foreign_share": round(outcome.foreign_share, 4),
        "bursts": asdict(outcome.bursts),
        "left_out": outcome.left_out,
        "contenders": lines,
    }


def read(path: Path) -> dict[str, Entry]:
    """Entries by model; none if there is no such file."""
    if not path.exists():
        return {}
    found: dict[str, Entry] = json.loads(path.read_text())["models"]
    return found


def write(path: Path, models: Mapping[str, Entry]) -> None:
    text = json.dumps({"models": models}, indent=1, allow_nan=False) + "\n"
    # Lists of numbers on a line: the file is committed, and a change of it is to be read.
    text = re.sub(r"\[([-\d.e,\s]+)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_file(path, "the result", lambda file: file.write(text.encode()))


def times_ms(entry: Entry, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Every latency of a contender."""
    return np.concatenate([np.asarray(turn) for turn in entry["contenders"][name]["times_ms"]])


def median_ms(entry: Entry, name: str) -> float:
    return float(np.median(times_ms(entry, name)))


def best_engine(entry: Entry, cores: int) -> str | None:
    """The contender with the least median among the engines on so many cores."""
    there = [f"{s}-{cores}" for s in ENGINES if f"{s}-{cores}" in entry["contenders"]]
    return min(there, key=lambda name: median_ms(entry, name)) if there else None


def ratio(entry: Entry, name: str, other: str | None) -> tuple[float, float, float] | None:
    """Median over median, and the quartiles of that ratio over the turns.

    None where one of them has not been measured.
    """
    if other is None or not {name, other} <= entry["contenders"].keys():
        return None
    mine, theirs = (
        [float(np.median(turn)) for turn in entry["contenders"][n]["times_ms"]]
        for n in (name, other)
    )
    turns = [one / another for one, another in zip(mine, theirs, strict=True)]
    low, high = np.percentile(turns, (25, 75))
    return median_ms(entry, name) / median_ms(entry, other), float(low), float(high)


def at_best(entry: Entry, name: str, others: Iterable[str]) -> float | None:
    """The fastest request of ``name`` over the fastest one of any of the others that were measured.

    None where nobody or only one side was.
    """
    there = [other for other in others if other in entry["contenders"]]
    if name not in entry["contenders"] or not there:
        return None
    least = min(float(times_ms(entry, other).min()) for other in there)
    return float(times_ms(entry, name).min()) / least


def ours(cores: int) -> str:
    return f"{OURS}-{cores}"
