"""How much of the time of messages nothing was done in: from what all ranks did in one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeflow_mpi.units.tables import Transfer, Unit, UnitTables, local_sources, units_by_layer

Stretch = tuple[float, float]
"""From when to when."""


@dataclass(frozen=True)
class Seen:
    """What one rank did in one request, by the clock that all ranks share, in seconds.

    Attributes
    ----------
    units : start and end of each of its units, by index.
    sent : when it handed over each of its messages.
    noticed : when it took note of each message to it.
    """

    units: Sequence[Stretch]
    sent: Mapping[Transfer, float]
    noticed: Mapping[Transfer, float]


@dataclass(frozen=True)
class Wire:
    """What a link makes of a message: it occupies its ends so long, and is late by the latency."""

    latency_s: float
    occupied_s: float


@dataclass(frozen=True)
class Share:
    """Seconds of one request, summed over ranks.

    Attributes
    ----------
    transfer_s : in which something was under way to the rank, by the rates of the links.
    computed_s : of these, in which the rank ran a unit.
    exposed_s : in which the rank was held up.
    late_s : of these, in which by the rates all had arrived: messages or ranks were late.
    """

    transfer_s: float
    computed_s: float
    exposed_s: float
    late_s: float

    @property
    def computed(self) -> float:
        """In which share of the time that something was under way the rank ran a unit."""
        return self.computed_s / self.transfer_s if self.transfer_s else 1.0

    @property
    def hidden(self) -> float:
        """At most 1; below 0 where ranks were held up for longer than messages should take."""
        return 1 - self.exposed_s / self.transfer_s if self.transfer_s else 1.0


@dataclass(frozen=True)
class Account:
    """``total`` of all messages; ``inner`` without those of the model's inputs.

    There is nothing to compute before the input has come, so only ``inner`` can all be hidden.
    """

    total: Share
    inner: Share


@dataclass(frozen=True)
class Gap:
    """A rank waited for messages: held up ``when``, until unit ``index`` began."""

    index: int
    when: Stretch


def arrivals(
    sent: Mapping[Transfer, float], wire: Callable[[Transfer], Wire]
) -> dict[Transfer, float]:
    """When each message is there, by the links alone.

    The rule is that of :mod:`edgeflow_mpi.partition.cost`: a message occupies its sender's outgoing
    side, first come first served, reaches its receiver one latency after it begins to leave, and
    occupies that one's incoming side for as long.
    """
    free_s: dict[int, float] = {}
    reaching = []
    for at_s, number, transfer in sorted((at, i, t) for i, (t, at) in enumerate(sent.items())):
        begin_s = max(at_s, free_s.get(transfer.source, at_s))
        cost = wire(transfer)
        free_s[transfer.source] = begin_s + cost.occupied_s
        reaching.append((begin_s + cost.latency_s, number, transfer, cost.occupied_s))
    taken_s: dict[int, float] = {}
    there = {}
    for reach_s, _, transfer, occupied_s in sorted(reaching):
        there[transfer] = max(reach_s, taken_s.get(transfer.dest, reach_s)) + occupied_s
        taken_s[transfer.dest] = there[transfer]
    return there


def gaps(units: Sequence[Unit], seen: Seen, sent: Mapping[Transfer, float]) -> list[Gap]:
    """Where a rank was held up.

    Parameters
    ----------
    units : the rank's, by index.
    seen : what it did.
    sent : when every message of the request was handed over.
    """
    pieces = units_by_layer(units)
    begun_s = min(sent.values(), default=0.0)
    ready_s, asked_s = [], []
    for unit in units:
        sources = [s for need in unit.requirements for s in local_sources(need, pieces)]
        ready_s.append(max((seen.units[source.index][1] for source in sources), default=begun_s))
        asked_s.append(max((sent[t] for t in _taken(unit)), default=-float("inf")))
    found = []
    order = sorted(range(len(units)), key=lambda index: seen.units[index])
    free_s = begun_s
    for position, index in enumerate(order):
        start_s, end_s = seen.units[index]
        if any(seen.noticed[transfer] > free_s for transfer in _taken(units[index])):
            # Whatever could have begun by then, had all that was handed over been there.
            could = [asked_s[i] for i in order[position:] if ready_s[i] <= free_s]
            since_s = max(free_s, min(could, default=start_s))
            if since_s < start_s:
                found.append(Gap(index, (since_s, start_s)))
        free_s = max(free_s, end_s)
    return found


def account(
    tables: UnitTables,
    ranks: Sequence[Seen],
    wire: Callable[[Transfer], Wire],
    inputs: frozenset[str],
) -> Account:
    """What was hidden in one request, from what all ``ranks`` did in it.

    Parameters
    ----------
    wire : what a message's link makes of it.
    inputs : the layers that are inputs of the model.
    """
    sent = {transfer: at_s for rank in ranks for transfer, at_s in rank.sent.items()}
    there = arrivals(sent, wire)
    total, inner = [], []
    for units, seen in zip(tables.ranks, ranks, strict=True):
        held = gaps(units, seen, sent)
        flights = [t for t in there if t.dest == (units[0].rank if units else -1)]
        total.append(_share(seen, [(sent[t], there[t]) for t in flights], held))
        flights = [t for t in flights if t.producer not in inputs]
        held = [gap for gap in held if not _scattered(units[gap.index], seen, gap, inputs)]
        inner.append(_share(seen, [(sent[t], there[t]) for t in flights], held))
    return Account(_sum(total), _sum(inner))


def worked_s(units: Sequence[Unit], seen: Seen) -> list[float]:
    """What each unit kept its rank busy for, the executor's own work before it included."""
    busy = [0.0] * len(units)
    free_s: float | None = None
    for index in sorted(range(len(units)), key=lambda index: seen.units[index]):
        start_s, end_s = seen.units[index]
        waited = free_s is None or any(seen.noticed[t] > free_s for t in _taken(units[index]))
        busy[index] = end_s - (start_s if waited or free_s is None else free_s)
        free_s = end_s
    return busy


def _scattered(unit: Unit, seen: Seen, gap: Gap, inputs: frozenset[str]) -> bool:
    """Whether the last message that the unit waited for was of the model's input."""
    return max(_taken(unit), key=lambda t: seen.noticed[t]).producer in inputs


def _taken(unit: Unit) -> set[Transfer]:
    return {transfer for need in unit.requirements for transfer in need.transfers}


def _share(seen: Seen, flights: Iterable[Stretch], held: Sequence[Gap]) -> Share:
    under_way = union(flights)
    exposed = [gap.when for gap in held]
    exposed_s = _length(exposed)
    return Share(
        _length(under_way),
        common_s(under_way, union(seen.units)),
        exposed_s,
        exposed_s - common_s(under_way, exposed),
    )


def _sum(shares: Sequence[Share]) -> Share:
    return Share(
        sum(share.transfer_s for share in shares),
        sum(share.computed_s for share in shares),
        sum(share.exposed_s for share in shares),
        sum(share.late_s for share in shares),
    )


def union(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The same time, in stretches that are in order and do not touch."""
    found: list[Stretch] = []
    for start_s, end_s in sorted(stretches):
        if found and start_s <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end_s))
        elif end_s > start_s:
            found.append((start_s, end_s))
    return found


def common_s(one: Sequence[Stretch], other: Sequence[Stretch]) -> float:
    """How long both last at the same time; each in order and without overlaps."""
    total_s, i, j = 0.0, 0, 0
    while i < len(one) and j < len(other):
        total_s += max(min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]), 0.0)
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total_s


def _length(stretches: Iterable[Stretch]) -> float:
    return sum(end_s - start_s for start_s, end_s in stretches)
