"""The text that a person reads after a run: at most 100 characters wide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from edgeflow_mpi.report.breakdown import breakdown_rows
from edgeflow_mpi.report.engine_use import engines_text
from edgeflow_mpi.report.results import (
    Difference,
    LayerComparison,
    RankStats,
    RunReport,
    Verification,
)

WIDTH = 100
WORST_LAYERS = 10
_LABEL = 15
_SHORTEST_HOST = 8
_EVEN = 0.03
_KILO = 1000

_TERMS = (
    "rows: the rank's share of the rows of all layers. compute: its time in units (a unit is a "
    "layer on some rows). waiting: its time with no unit ready, for messages of other ranks. "
    "sent, messages: to other ranks, for one request. memory: the process's peak."
)
_PARTS = (
    "copy: tensors moved in the rank's own memory. messages: calls that start them or ask for "
    "them. dispatch: the executor's work. a unit's own: these three, for one unit."
)


def summary(report: RunReport) -> str:
    """What was run, how long it took, whether that was worth it, and who did what."""
    facts = [
        ("emulated", report.emulated),
        ("latency", _latency(report)),
        ("throughput", _throughput(report)),
        ("single device", _single_device(report)),
        ("speedup", _speedup(report)),
        ("predicted", _predicted(report)),
        ("verified", _verified(report.verification)),
        ("traffic", _traffic(report)),
        ("engines", engines_text(report.engines, report.engine)),
        ("waiting", _waiting(report)),
        ("start-up", report.timings.text),
    ]
    lines = _wrap(_title(report), "")
    if report.random_weights:
        lines += _wrap(f"{_sentence(report.weights_note)} The answer means nothing.", "")
    else:
        lines += _wrap(_sentence(report.weights_note), "") if report.weights_note else []
    lines += [""]
    for label, text in facts:
        lines += _wrap(text, " " * (_LABEL + 2), f"  {label:{_LABEL}}") if text else []
    lines += ["", *rank_table(report.per_rank), *_wrap(_TERMS, "  ", "  ")]
    lines += _breakdown(report)
    notes = [*_observations(report), *report.notes]
    if notes:
        lines += [""]
    for note in notes:
        lines += _wrap(_sentence(note), "  ", "* ")
    return "\n".join(line.rstrip() for line in lines)


def rank_table(per_rank: Sequence[RankStats]) -> list[str]:
    """Lines of a table with a row for every rank."""
    everything = max(sum(stats.rows for stats in per_rank), 1)
    head = ("rank", "host", "rows", "units", "compute", "waiting", "sent", "messages", "memory")
    body = [
        (
            str(stats.rank),
            stats.host,
            f"{100 * stats.rows / everything:.1f} %",
            str(stats.units),
            f"{stats.compute_ms:.1f} ms",
            f"{stats.wait_ms:.1f} ms",
            _size(stats.bytes_sent),
            str(stats.messages_sent),
            _size(stats.peak_memory_bytes),
        )
        for stats in per_rank
    ]
    # Whatever is too wide, it is the host's name that can be shortened.
    excess = max(map(len, _table(head, body))) - WIDTH
    longest = max(max(len(row[1]) for row in body) - max(excess, 0), _SHORTEST_HOST)
    body = [(row[0], _shortened(row[1], longest), *row[2:]) for row in body]
    return _table(head, body, left=(1,))


def _breakdown(report: RunReport) -> list[str]:
    """Where the time of ranks and units went, if that is known."""
    if not report.breakdown:
        return []
    head, ranks, unit_head, units = breakdown_rows(report.breakdown)
    units = [(_shortened(row[0], 36), *row[1:]) for row in units]
    lines = ["", "  Milliseconds of one request:", *_table(head, ranks), *_wrap(_PARTS, "  ", "  ")]
    return [*lines, "", "  Units with the most beside their kernels:",
            *_table(unit_head, units, left=(0,))]  # fmt: skip


def layer_report(comparison: LayerComparison, count: int = WORST_LAYERS) -> str:
    """Which layer differs first, and the layers with the largest errors for their tolerance."""
    compared = comparison.differences
    lines = []
    bad = comparison.first_bad
    if bad is not None:
        wrong = sum(not difference.passed for difference in compared)
        lines += _wrap(
            f"The first layer that differs from plain torch is {bad.name}: {_error(bad)}. "
            f"{wrong} of {len(compared)} layers differ; those after it may only pass its error on.",
            "",
        )
    elif compared:
        lines += _wrap(f"All {len(compared)} layers agree with plain torch.", "")
    if comparison.unmatched:
        lines += _wrap(
            f"Not compared, as plain torch has no such value: {', '.join(comparison.unmatched)}.",
            "",
        )
    chosen = sorted(range(len(compared)), key=lambda i: (-compared[i].severity, i))[:count]
    head = ("layer", "place", "error", "allowed", "plain torch", "")
    body = [
        (
            _shortened(compared[i].name, 40),
            f"{i + 1}/{len(compared)}",
            _ratio(compared[i].rel_err),
            _ratio(compared[i].tolerance),
            _ratio(compared[i].fp32_err),
            "" if compared[i].passed else "DIFFERS",
        )
        for i in chosen
    ]
    if body:
        lines += ["The largest errors for their tolerance, each relative to its layer's magnitude:"]
        lines += _table(head, body, left=(0, 5))
    return "\n".join(line.rstrip() for line in lines)


def _title(report: RunReport) -> str:
    shapes = " and ".join("×".join(map(str, shape)) for shape in report.input_shapes)
    hosts = len(report.hosts)
    return (
        f"{report.model} with input {shapes} on {_count(report.ranks, 'rank')} of "
        f"{_count(hosts, 'host')}, partitioner {report.partitioner}"
    )


def _latency(report: RunReport) -> str:
    latency = report.latency
    if len(latency.all_ms) == 1:
        return f"{_ms(latency.median_ms)}, one run only"
    runs = _count(len(latency.all_ms), "run")
    if len(report.requests) > 1:
        runs += f" of {len(report.requests)} requests"
    if report.warmup:
        runs += f", after {report.warmup} to warm up"
    return (
        f"median {_ms(latency.median_ms)}, 95th percentile {_ms(latency.p95_ms)}, "
        f"fastest {_ms(latency.min_ms)} ({runs})"
    )


def _throughput(report: RunReport) -> str:
    if report.in_flight == 1 or report.throughput_per_s is None:
        return ""
    return (
        f"{report.throughput_per_s:.1f} requests/s with {report.in_flight} under way at once, "
        "which each request's latency includes"
    )


def _single_device(report: RunReport) -> str:
    single = report.single_device
    if single is None:
        return report.single_device_note or "not measured"
    return (
        f"{_ms(single.median_ms)}: the whole model on {_who(report, single.rank)}, in the same job"
    )


def _speedup(report: RunReport) -> str:
    single, speedup = report.single_device, report.speedup
    if single is None or speedup is None:
        return ""
    who = f"the best single device alone ({_who(report, single.rank)})"
    if report.ranks == 1:
        return "none to be had: there is one rank, so nothing is divided"
    if len(report.used) == 1:
        text = (
            f"none: the plan does not divide the model, {_who(report, report.used[0])} "
            "computes all of it"
        )
        if speedup >= 1 - _EVEN or report.ranks == len(report.hosts):
            return text
        # A rank has its share of its host's cores, and the single device all of them.
        threads = report.per_rank[report.used[0]].threads
        return f"{text}, with {_count(threads, 'thread')}; the single device has its host's cores"
    if abs(speedup - 1) <= _EVEN:
        return f"none: as fast as {who}"
    if speedup > 1:
        return f"{_times(speedup)} faster than {who}"
    text = f"{_times(1 / speedup)} SLOWER than {who}"
    if len(report.hosts) == 1:
        return text
    return (
        f"{text}: do not distribute this model on these devices, run it on "
        f"{report.per_rank[single.rank].host} alone"
    )


def _predicted(report: RunReport) -> str:
    if report.predicted_ms is None:
        return ""
    measured = report.latency.median_ms
    text = _ms(report.predicted_ms)
    if measured <= 0:
        return text
    error = round(100 * (report.predicted_ms / measured - 1))
    if error == 0:
        return f"{text}, as measured"
    return f"{text}, {abs(error)} % {'more' if error > 0 else 'less'} than measured"


def _verified(verification: Verification | None) -> str:
    if verification is None:
        return "no (--verify compares the answer with plain torch in float64)"
    found = verification.worst
    layers = verification.layers
    compared = "" if verification.requests == 1 else f" in {verification.requests} requests"
    if found.passed:
        text = f"the answer is right{compared}: {_error(found)}"
    else:
        where = f", output {found.name}" if len(verification.by_name) > 1 else ""
        text = f"the answer is WRONG{compared}{where}: {_error(found)}"
    if layers is None:
        return text
    if layers.first_bad is not None:
        but = "; BUT" if found.passed else ";"
        return f"{text}{but} the first layer that differs is {layers.first_bad.name}"
    return f"{text}; all {len(layers.differences)} layers agree as well"


def _error(difference: Difference) -> str:
    if difference.fault is not None:
        return difference.fault
    what = "its elements" if difference.counted else "its largest value"
    return (
        f"off by {_ratio(difference.rel_err)} of {what}, allowed "
        f"{_ratio(difference.tolerance)} (plain torch: {_ratio(difference.fp32_err)})"
    )


def _traffic(report: RunReport) -> str:
    if report.messages == 0:
        return "no messages"
    return f"{_count(report.messages, 'message')}, {_size(report.bytes_sent)} for one request"


def _waiting(report: RunReport) -> str:
    """How the ranks wait, said once for those that do the same."""
    if report.messages == 0:
        return ""
    ways: dict[str, list[str]] = {}
    for stats in report.per_rank:
        ways.setdefault(stats.waiting, []).append(str(stats.rank))
    ways.pop("", None)
    if not ways:
        return ""
    texts = [
        f"{'a rank' if len(ways) == 1 else 'rank ' + ', '.join(ranks)} {way}"
        for way, ranks in ways.items()
    ]
    return f"{'; '.join(texts)}; progress thread {'on' if report.progress_thread else 'off'}"


def _observations(report: RunReport) -> list[str]:
    """What a reader must know before drawing conclusions from the numbers."""
    if report.ranks == 1:
        return []
    crowded = [f"{host} ({n} ranks)" for host, n in report.hosts.items() if n > 1]
    if len(report.hosts) == 1:
        return [
            f"{report.ranks} ranks share one host: this run shows that the answer is right, not "
            "how fast a cluster is."
            if report.verification is not None and report.verification.passed
            else f"{report.ranks} ranks share one host: this run does not show how fast a "
            "cluster is."
        ]
    notes = []
    if crowded:
        notes.append(f"Ranks share the cores of {', '.join(crowded)}.")
    idle = [str(stats.rank) for stats in report.per_rank if stats.rank not in report.used]
    if idle and len(report.used) > 1:
        who = f"rank {idle[0]}" if len(idle) == 1 else f"ranks {', '.join(idle)}"
        notes.append(f"The plan leaves {who} out: nothing is computed there.")
    return notes


def _who(report: RunReport, rank: int) -> str:
    return f"rank {rank}, {report.per_rank[rank].host}"


def _table(
    head: Sequence[str], body: Sequence[Sequence[str]], *, left: Sequence[int] = ()
) -> list[str]:
    """Aligned columns; those in ``left`` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *body)
    ]


def _wrap(text: str, indent: str, first: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value >= 1 else f"{value:.3f} ms"


def _times(factor: float) -> str:
    """A factor, with enough digits that it never reads 1.0."""
    return f"{factor:.2f}×" if factor < 1.1 else f"{factor:.1f}×"


def _ratio(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < _KILO:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= _KILO
    return f"{size:.1f} GB"
