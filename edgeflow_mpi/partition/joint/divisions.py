"""Layers divided by channels or by inputs: which such divisions deserve a search of their own.

Dividing channels costs an exchange of whole maps for every convolution, and pays where few
rows are left and links are fast. Dividing a wide linear layer pays wherever its weights take
long to multiply, as what travels is a few kilobytes. Neither is varied layer by layer in the
long search. A few divisions are tried, each by a plan that follows the best one so far:

* each linear layer that takes long by its outputs, by its inputs, or not at all;
* all layers from some point on by their outputs, that point being one of the heavy layers
  with few rows, and the linear layers behind them as above.

Only the last layers of a model are divided so, those of :mod:`edgeflow_mpi.graph.tail`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.division import Division, How, can_divide, divided, multiplies
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.tail import MANY_BYTES, tail, weight_bytes
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.baselines import proportional
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.plan import Plan

_HEAVY = 0.005
"""A layer takes long if one device takes this part of the makespan for all of it."""
_LINEARS, _TAILS = 4, 4
_DERIVED_DOUBT = 1.15
"""Maps divided by channels must promise this much where what kernels take for them was only derived
from what they take for rows."""
_EXCHANGE_S = 50e-6
"""Where it was measured, what a map divided by channels takes beyond what is predicted: packing
channels, sending them to all, unpacking them, and that everybody waits for the last. MobileNetV2 on
two ranks of one machine gained next to nothing where 0.3 ms was predicted, with 4 to 13 maps."""
_WAYS: tuple[How, ...] = ("inputs", "outputs")


@dataclass(frozen=True)
class Case:
    """A graph to be planned: the model's own, with a division."""

    graph: Graph
    needs: Needs
    division: Division = ()

    def promise_s(self, makespan_s: float, profile: Profile) -> float:
        """What is to be compared with others' makespans: more, where it is not to be trusted."""
        graph = self.graph
        # A flattening in front of a layer that is divided by its inputs is in no graph.
        named = {name for name, how in self.division if how == "outputs"}
        maps = [layer for layer in graph.layers if layer.name in named and not multiplies(layer)]
        if not maps:
            return makespan_s
        heavy = [layer for layer in maps if weight_bytes(graph, layer) >= MANY_BYTES]
        known = {graph.signatures[layer.name] in profile.costs[0] for layer in heavy}
        if known == {True}:
            return makespan_s + _EXCHANGE_S * len(maps)
        return makespan_s * _DERIVED_DOUBT

    def with_division(self, division: Division) -> Case:
        """Another division of the same model; this must be the model's own graph."""
        assert not self.division
        return Case(*divided(self.graph, self.needs, division), division)


Judge = Callable[[Case, Plan], float]
"""The makespan of a plan for a case."""


def divisions_worth_trying(
    case: Case, profile: Profile, plan: Plan, used: Sequence[int], makespan_s: float, judge: Judge
) -> Iterator[tuple[Case, Plan, float]]:
    """Divisions of the model's own graph, each with a plan that follows ``plan``, and its makespan.

    They are made while they are asked for; whoever has no more time may stop asking.

    Parameters
    ----------
    case : the model's own graph.
    profile : of all devices.
    plan : the best so far for ``case``, on the devices ``used``.
    makespan_s : its makespan.
    judge : tells the makespan of others.
    """
    graph = case.graph
    last = tail(graph, len(used))
    long = _takes_long(graph, profile, used, makespan_s)
    long = {name: seconds for name, seconds in long.items() if name in last}
    linears = [layer for layer in graph.layers if multiplies(layer) and layer.name in long]
    linears = sorted(linears, key=lambda layer: -long[layer.name])[:_LINEARS]
    linears.sort(key=graph.layers.index)

    def tried(division: Division) -> tuple[Case, Plan, float] | None:
        try:
            other = case.with_division(division)
        except PlanError:
            return None
        follower = _following(graph, other, plan, profile, used)
        return other, follower, judge(other, follower)

    def with_linears(division: Division, best_s: float) -> Iterator[tuple[Case, Plan, float]]:
        for layer in linears:
            kept = division
            for how in _WAYS:
                other = _in_order(graph, (*division, (layer.name, how)))
                found = tried(other)
                if found is None:
                    continue
                yield found
                if found[2] < best_s:
                    kept, best_s = other, found[2]
            division = kept

    yield from with_linears((), makespan_s)
    for start in _starts(graph, long):
        channels = _by_outputs(graph, last, start)
        found = tried(channels) if channels else None
        if found is None:
            continue
        yield found
        best_s = found[2]
        for other in with_linears(channels, best_s):
            yield other
            best_s = min(best_s, other[2])
        if best_s > makespan_s * (1 + _HEAVY):
            break  # from an earlier layer on there is even more to exchange


def _takes_long(
    graph: Graph, profile: Profile, used: Sequence[int], makespan_s: float
) -> dict[str, float]:
    """Seconds of all of a layer on the fastest device, for layers where that is long."""
    found = {}
    for layer in graph.layers:
        if layer.kind == "compute":
            costs = (layer_cost(graph, profile, layer, rank) for rank in used)
            seconds = min(cost.seconds(layer.rows) for cost in costs)
            if seconds >= _HEAVY * makespan_s:
                found[layer.name] = seconds
    return found


def _starts(graph: Graph, long: Collection[str]) -> Iterator[Layer]:
    """Some of the maps that take long, from the last one to the first one."""
    maps = [layer for layer in graph.layers if layer.name in long and layer.rows > 1]
    maps.reverse()
    count = min(len(maps), _TAILS)
    for k in range(count):
        yield maps[k * (len(maps) - 1) // max(count - 1, 1)]


def _by_outputs(graph: Graph, last: Collection[str], start: Layer) -> Division:
    """All layers from ``start`` on by their outputs, linear layers aside."""
    behind = graph.layers[graph.layers.index(start) :]
    return tuple(
        (layer.name, "outputs")
        for layer in behind
        if layer.name in last and not multiplies(layer) and can_divide(graph, layer, "outputs")
    )


def _in_order(graph: Graph, division: Division) -> Division:
    place = {layer.name: k for k, layer in enumerate(graph.layers)}
    return tuple(sorted(division, key=lambda item: place[item[0]]))


def _following(own: Graph, case: Case, plan: Plan, profile: Profile, used: Sequence[int]) -> Plan:
    """``plan``, which is for ``own``, where the division changes nothing, else shares by speed."""
    graph = case.graph
    other = proportional(graph, case.needs, profile.among(used), used)
    kept = {layer.name for layer in graph.layers if own.by_name.get(layer.name) == layer}
    return replace(
        other,
        layers={name: (plan if name in kept else other).layers[name] for name in graph.by_name},
        order=_order(graph, plan),
        boundary_first=frozenset(unit for unit in plan.boundary_first if unit[0] in kept),
        division=case.division,
    )


def _order(graph: Graph, plan: Plan) -> tuple[str, ...]:
    """The order of ``plan``; summands are made just before they are added up."""
    found: list[str] = []
    for name in plan.order:
        if name in graph.by_name:
            layer = graph.by_name[name]
            found += [part for part in layer.inputs if part not in plan.layers]
            found.append(name)
    return tuple(found)
