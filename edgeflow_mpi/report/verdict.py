"""Whether distributing helps, in words; and if not, what would have to change."""

from __future__ import annotations

from collections.abc import Mapping

from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.report.candidates import Candidate
from edgeflow_mpi.report.planning import Comparison
from edgeflow_mpi.report.remedy import WORTH_IT, Remedy, find_remedy
from edgeflow_mpi.report.wording import counted, listed, ms, percent, rate, rounded, times

CLEAR_WIN = 1.05
"""A smaller gain over one device is not worth the wires."""


def verdict(comparison: Comparison, progress: Progress) -> str:
    """One or a few sentences: which devices to use and what that brings, or why not to."""
    best, single = comparison.best, comparison.single
    if single is None:
        return _only_together(comparison, best)
    speedup = comparison.speedup(best)
    assert speedup is not None
    if len(best.used) > 1 and speedup >= CLEAR_WIN:
        return _distribute(comparison, best, single, speedup)
    return _do_not(comparison, single, progress)


def _distribute(comparison: Comparison, best: Candidate, single: Candidate, speedup: float) -> str:
    names = comparison.task.names
    use = (
        f"Use {_of_your(len(best.used), len(names))}{_which(comparison, best)}: "
        f"{times(speedup)} faster than {names[single.used[0]]} alone, {ms(best.predicted_s)} "
        f"instead of {ms(single.predicted_s)} (partitioner {best.partitioner})."
    )
    return " ".join([use, _certificate(comparison, best), *_left_out(comparison, best)])


def _only_together(comparison: Comparison, best: Candidate) -> str:
    use = (
        f"Use {_of_your(len(best.used), len(comparison.task.names))}{_which(comparison, best)}: no "
        f"device has the memory for the model alone, together they take {ms(best.predicted_s)} "
        f"(partitioner {best.partitioner})."
    )
    return f"{use} {_certificate(comparison, best)}"


def _do_not(comparison: Comparison, single: Candidate, progress: Progress) -> str:
    names = comparison.task.names
    (rank,) = single.used or (0,)
    alone = f"{names[rank]} alone takes {ms(single.predicted_s)}"
    if len(comparison.task.allowed) == 1:
        return f"There is one device to use: {alone}."
    if rank != 0 and 0 in comparison.alone:
        first = comparison.alone[0].predicted_s
        alone += (
            f", the way to it and back included ({times(first / single.predicted_s)} faster than "
            f"{names[0]}, which holds the input)"
        )
    divided = [c for c in comparison.candidates if len(c.used) > 1]
    if divided:
        other = min(divided, key=lambda c: c.predicted_s)
        how = f"the best plan on several devices ({other.partitioner}, {len(other.used)} of them)"
        change = other.predicted_s / single.predicted_s
        if change > 1.005:
            alone += f", {how} {ms(other.predicted_s)}"
        else:
            alone += f", and {how} gains no more than {percent(max(0.0, 1 - change))}"
    remedy = find_remedy(comparison, progress)
    words = f"Do not distribute this model: {alone}. {_change(comparison, remedy)}"
    tried = {c.partitioner for c in comparison.candidates} - {"single"}
    if len(tried) == 1 and "joint" not in tried:
        words += f" (Only {tried.pop()} was tried.)"
    return words


def _of_your(used: int, there: int) -> str:
    if used == there:
        return "both of your devices" if there == 2 else f"all {there} of your devices"
    return f"{used} of your {counted(there, 'device')}"


def _which(comparison: Comparison, best: Candidate) -> str:
    names = comparison.task.names
    if len(best.used) == len(names):
        return ""
    return f" ({listed([names[rank] for rank in best.used], 8)})"


def _certificate(comparison: Comparison, best: Candidate) -> str:
    gap = comparison.gap(best)
    if gap < 0.005:
        return "No plan can be faster."
    return (
        f"No plan can take less than {ms(comparison.lower_bound_s)}, so at most "
        f"{percent(1 - 1 / (1 + gap))} is left to gain."
    )


def _left_out(comparison: Comparison, best: Candidate) -> list[str]:
    """Devices that could have been used, and partitioners that could not."""
    task = comparison.task
    idle = [task.names[rank] for rank in task.allowed if rank not in best.used]
    found = []
    if idle:
        verb = "does" if len(idle) == 1 else "do"
        found.append(f"{listed(idle)} {verb} not help, as far as any partitioner has found.")
    if comparison.refused:
        which = "; ".join(f"{item.partitioner} {item.reason}" for item in comparison.refused)
        found.append(f"Not offered for lack of memory: {which}.")
    return found


def _change(comparison: Comparison, remedy: Remedy) -> str:
    """What would have to change, or that nothing would do."""
    links = comparison.task.profile.links
    ways = []
    if remedy.bandwidth_factor is not None:
        ways.append(_bandwidth(links, remedy.bandwidth_factor))
    if remedy.latency_factor is not None:
        ways.append(_latency(links, remedy.latency_factor))
    gain = f"For a gain of {times(WORTH_IT)}"
    if ways:
        return f"{gain} {', or '.join(ways)} would do."
    if remedy.both_factor is not None:
        both = f"{_bandwidth(links, remedy.both_factor)} and {_latency(links, remedy.both_factor)}"
        return f"{gain} it would take {both}."
    ideal = remedy.ideal_speedup
    even = (
        "Even a network without any delay would gain nothing"
        if ideal < 1.005
        else f"Even a network without any delay would make it only {times(ideal)} faster"
    )
    if remedy.combined_speed < WORTH_IT:
        return (
            f"{even}: all devices together are only {times(remedy.combined_speed)} as fast as the "
            "fastest one, so others of its kind would be needed."
        )
    return (
        f"{even}: the model has too little work in each layer for more devices, so only a faster "
        "device or less overhead per layer would help."
    )


def _bandwidth(links: Mapping[tuple[int, int], Link], factor: float) -> str:
    rates = {link.bandwidth_bytes_s for link in links.values()}
    if len(rates) == 1:
        (now,) = rates
        return f"links of {rate(now * factor)} (now {rate(now)})"
    return f"links with {rounded(factor)} times the bandwidth"


def _latency(links: Mapping[tuple[int, int], Link], factor: float) -> str:
    latencies = {link.latency_s for link in links.values()}
    if len(latencies) == 1:
        (now,) = latencies
        return f"a latency of {rounded(now * 1e3 / factor)} ms (now {rounded(now * 1e3)} ms)"
    return f"{rounded(factor)} times less latency"
