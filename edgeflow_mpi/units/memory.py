"""How much memory every device needs for a plan: known before anything runs.

Counted is what grows with the model and the plan: the weights of the layers that a device
computes, the block of memory that its tensors share (:mod:`edgeflow_mpi.units.arena`), and the
most that is alive beside it while a request is answered: the request, the answer, what kernels
work in, and *loose* tensors, which lie wherever their kernels leave them. Not counted is what
every process needs whatever it computes (Python, torch, MPI), and what an engine keeps beside a
weight to multiply faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from edgeflow_mpi.graph.local import part_spec, weight_keys
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.scratch import VIEWS, piece_bytes, scratch_bytes
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.units.arena import lay_out
from edgeflow_mpi.units.buffers import fixed_layers
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.precedence import Precedence
from edgeflow_mpi.units.tables import Unit, UnitTables


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that one device needs for a plan.

    ``weights_bytes`` and ``arena_bytes`` are held all the time; ``live_bytes`` is the most
    that is alive beside them while a request is answered, the request and the answer included.
    """

    weights_bytes: int
    arena_bytes: int
    live_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weights_bytes + self.arena_bytes + self.live_bytes


def plan_memory(graph: Graph, needs: Needs, plan: Plan) -> tuple[DeviceMemory, ...]:
    """What every rank needs for ``plan``, which must satisfy ``check_plan``."""
    return tables_memory(graph, compile_tables(graph, needs, plan))


def tables_memory(graph: Graph, tables: UnitTables) -> tuple[DeviceMemory, ...]:
    """What every rank needs, as far as that is known without its engines.

    It is the more of two extremes: either all kernels that could compute straight into memory
    that they are given, or none. Some of each may need a tenth more than that.
    """
    precedence = Precedence(tables)
    found = []
    for rank, units in enumerate(tables.ranks):
        ways = [
            rank_memory(graph, tables, rank, precedence, direct)
            for direct in (frozenset[str](), _likely_direct(graph, units))
        ]
        found.append(max(ways, key=lambda memory: memory.peak_bytes))
    return tuple(found)


def rank_memory(
    graph: Graph, tables: UnitTables, rank: int, precedence: Precedence, direct: Collection[str]
) -> DeviceMemory:
    """What one rank needs.

    Parameters
    ----------
    graph, tables : the layer DAG, and verified tables.
    precedence : of ``tables``.
    direct : the layers whose kernels compute straight into memory that they are given.
    """
    units, found = tables.ranks[rank], frozenset(direct)
    loose = frozenset(unit.layer for unit in units) - found - fixed_layers(units)
    weights = {
        name: part_spec(graph, name, part)
        for unit in units
        for name, part in weight_keys(graph, graph.by_name[unit.layer], unit.rows).items()
    }
    return DeviceMemory(
        weights_bytes=sum(spec.size_bytes for spec in weights.values()),
        arena_bytes=lay_out(graph, tables, rank, precedence, loose).size_bytes,
        live_bytes=_live_bytes(graph, units, loose, found),
    )


def _likely_direct(graph: Graph, units: tuple[Unit, ...]) -> frozenset[str]:
    layers = (graph.by_name[unit.layer] for unit in units)
    return frozenset(layer.name for layer in layers if not _stays(layer))


def _stays(layer: Layer) -> bool:
    """Whether a layer certainly has no result of its own to put anywhere."""
    views = all(step.target in VIEWS for step in layer.steps)
    return views or layer.divided != "rows"


def _live_bytes(
    graph: Graph, units: tuple[Unit, ...], loose: frozenset[str], direct: frozenset[str]
) -> int:
    """The most that is alive outside of the arena while ``units`` run in their order."""
    unread = Counter(need.producer for unit in units for need in unit.requirements)
    layers = [graph.by_name[unit.layer] for unit in units]
    now = peak = sum(layer.out.size_bytes for layer in layers if layer.kind == "input")
    alive: dict[str, int] = {}
    for unit, layer in zip(units, layers, strict=True):
        result = layer.out.size_bytes if layer.combine else piece_bytes(layer.out, unit.rows)
        scratch = scratch_bytes(graph, layer, unit.rows)
        straight = layer.name in direct or (layer.kind == "input" and layer.name not in loose)
        peak = max(peak, now + scratch + (0 if straight else result))
        if layer.name in loose:
            alive[layer.name] = result
            now += result
        for need in unit.requirements:
            unread[need.producer] -= 1
            if not unread[need.producer]:
                now -= alive.pop(need.producer, 0)
    return peak
