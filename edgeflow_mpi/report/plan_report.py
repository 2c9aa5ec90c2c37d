"""A comparison of partitioners as a page for people and as JSON for tools."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path

from edgeflow_mpi.graph.division import in_words
from edgeflow_mpi.report.candidates import Candidate
from edgeflow_mpi.report.files import write_file
from edgeflow_mpi.report.planning import Comparison
from edgeflow_mpi.report.results import Json
from edgeflow_mpi.report.wording import counted, ms, percent, size, table, times

WIDTH = 100
MOST_DEVICES = 16
"""So many devices are listed one by one."""

_TERMS = (
    "speed-up: over the best single device, transfers from and to the first device included. "
    "gap: how far above a lower bound that no plan can beat. redundant: multiply-adds that "
    "another device does too. memory: the most on any device, weights and tensors together. "
    "planning: seconds."
)


def page(comparison: Comparison, words: str) -> str:
    """The whole result as text; ``words`` is the verdict, which stands at the end."""
    lines = [*textwrap.wrap(_title(comparison), WIDTH), "", *partitioner_table(comparison)]
    lines += [f"{item.partitioner}: not offered, it {item.reason}" for item in comparison.refused]
    lines += ["", *textwrap.wrap(_TERMS, WIDTH), ""]
    lines += [f"Devices under {comparison.best.partitioner}:", *device_table(comparison)]
    if comparison.best.plan.division:
        said = f"Not divided by rows: {in_words(comparison.best.plan.division)}."
        lines += ["", *textwrap.wrap(said, WIDTH)]
    lines += ["", *textwrap.wrap(words, WIDTH, break_on_hyphens=False)]
    return "\n".join(lines)


def partitioner_table(comparison: Comparison) -> list[str]:
    """A line for every partitioner, the fastest first."""
    head = (
        "partitioner", "latency", "speed-up", "gap", "devices", "moved", "messages", "redundant",
        "memory", "planning",
    )  # fmt: skip
    body = []
    for candidate in comparison.ranked:
        speedup = comparison.speedup(candidate)
        body.append(
            (
                candidate.partitioner,
                ms(candidate.predicted_s),
                "-" if speedup is None else times(speedup),
                percent(comparison.gap(candidate)),
                str(len(candidate.used)),
                size(candidate.bytes_moved),
                f"{candidate.messages:,}",
                percent(candidate.redundant_share),
                size(max(memory.peak_bytes for memory in candidate.memory)),
                f"{candidate.planning_s:.1f}",
            )
        )
    return table(head, body)


def device_table(comparison: Comparison) -> list[str]:
    """What every device has to do under the best plan."""
    best, task = comparison.best, comparison.task
    head = ("device", "work", "busy", "sends", "messages", "memory", "of")
    done = [_macs(best, rank) for rank in range(len(task.names))]
    total = sum(done) or 1.0
    body = [
        (
            name,
            percent(done[rank] / total),
            percent(best.prediction.compute_s[rank] / best.predicted_s if best.predicted_s else 0),
            size(best.prediction.bytes_sent[rank]),
            f"{best.prediction.messages[rank]:,}",
            size(best.memory[rank].peak_bytes),
            _limit(task.profile.devices[rank].memory_bytes),
        )
        for rank, name in enumerate(task.names)
    ]
    more = len(body) - MOST_DEVICES
    lines = table(head, body)
    if more <= 1:
        return lines
    return [*lines[: MOST_DEVICES + 1], f"and {counted(more, 'device')} more"]


def to_json(comparison: Comparison, words: str) -> Json:
    """The result for tools.

    ``gap`` is a share (0.1: at most 10 % above the lower bound), ``devices_used`` a count and
    ``peak_memory_bytes`` a list with a number for every device, in their order. Where no device
    has the memory for the model alone, ``single_device``, ``single_device_ms`` and ``speedup``
    are null.
    """
    task, single = comparison.task, comparison.single
    shapes = [list(layer.out.shape) for layer in task.graph.inputs]
    return {
        "model": task.graph.name,
        "input_shape": shapes[0] if len(shapes) == 1 else shapes,
        "single_device_ms": None if single is None else single.predicted_s * 1e3,
        "single_device": None if single is None else task.names[single.used[0]],
        "lower_bound_ms": comparison.lower_bound_s * 1e3,
        "verdict": words,
        "plans": [
            {
                "partitioner": candidate.partitioner,
                "predicted_ms": candidate.predicted_s * 1e3,
                "speedup": comparison.speedup(candidate),
                "gap": _finite(comparison.gap(candidate)),
                "devices_used": len(candidate.used),
                "bytes_moved": candidate.bytes_moved,
                "messages": candidate.messages,
                "division": dict(candidate.plan.division),
                "redundant_share": candidate.redundant_share,
                "peak_memory_bytes": [memory.peak_bytes for memory in candidate.memory],
                "planning_s": candidate.planning_s,
                "simulations": candidate.simulations,
            }
            for candidate in comparison.candidates
        ],
    }


def write_json(comparison: Comparison, words: str, path: Path) -> None:
    """Write :func:`to_json` to a file; raises InputError where it cannot be written."""
    text = json.dumps(to_json(comparison, words), indent=2, ensure_ascii=False, allow_nan=False)
    write_file(path, "the comparison", lambda file: file.write(text.encode() + b"\n"))


def _title(comparison: Comparison) -> str:
    task = comparison.task
    shapes = " and ".join("×".join(map(str, layer.out.shape)) for layer in task.graph.inputs)
    types = {layer.out.dtype for layer in task.graph.inputs}
    alone = ""
    if comparison.single is not None:
        single = comparison.single
        alone = f"; {task.names[single.used[0]]} alone takes {ms(single.predicted_s)}"
    bound = f"no plan takes less than {ms(comparison.lower_bound_s)}"
    out = f", {counted(len(task.excluded), 'device')} excluded" if task.excluded else ""
    return (
        f"{task.graph.name} with input {shapes} ({', '.join(sorted(types))}) on "
        f"{counted(len(task.names), 'device')}{out}{alone}; {bound}"
    )


def _macs(candidate: Candidate, rank: int) -> float:
    return sum(
        layer.macs * candidate.plan.layers[layer.name].computed[rank].rows / layer.rows
        for layer in candidate.graph.layers
    )


def _limit(memory_bytes: int) -> str:
    return "no limit" if memory_bytes >= 10**18 else size(memory_bytes)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
