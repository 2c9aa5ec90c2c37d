"""How much memory every device needs for a plan: known before anything runs.

Counted is what grows with the model and the plan: the weights of the layers that a device
computes, what engines keep beside them to multiply faster, the block of memory that the device's
tensors share (:mod:`edgeflow_mpi.units.arena`), and the most that is alive beside it while a
request is answered: the request, the answer, what kernels work in, and *loose* tensors, which lie
wherever their kernels leave them. Not counted is what every process needs whatever it computes
(Python, torch, MPI).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from edgeflow_mpi.graph.local import part_spec, weight_keys
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.kept import likely_kept_bytes
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

    ``weights_bytes``, ``packed_bytes`` (what engines keep of weights) and ``arena_bytes`` are held
    all the time; ``live_bytes`` is the most that is alive beside them while a request is answered,
    the request and the answer included.
    """

    weights_bytes: int
    packed_bytes: int
    arena_bytes: int
    live_bytes: int

    @property
    def held_bytes(self) -> int:
        """What is held all the time."""
        return self.weights_bytes + self.packed_bytes + self.arena_bytes

    @property
    def peak_bytes(self) -> int:
        return self.held_bytes + self.live_bytes

    def for_requests(self, count: int) -> DeviceMemory:
        """The same with ``count`` requests under way at once, each with tensors of its own."""
        tensors = {"arena_bytes": self.arena_bytes * count, "live_bytes": self.live_bytes * count}
        return replace(self, **tensors)


def plan_memory(graph: Graph, needs: Needs, plan: Plan) -> tuple[DeviceMemory, ...]:
    """What every rank needs for ``plan``, which must satisfy ``check_plan``."""
    return tables_memory(graph, compile_tables(graph, needs, plan))


def tables_memory(
    graph: Graph, tables: UnitTables, ranks: Sequence[int] | None = None
) -> tuple[DeviceMemory, ...]:
    """What every rank needs, or each of ``ranks``, as far as that is known without its kernels.

    It is the more of two extremes: either all kernels that could compute straight into memory
    that they are given, or none. Some of each may need a tenth more than that.
    """
    precedence = Precedence(tables)
    found = []
    for rank in range(tables.size) if ranks is None else ranks:
        likely = _likely_direct(graph, tables.ranks[rank])
        ways = [
            rank_memory(graph, tables, rank, precedence, direct, frozenset())
            for direct in (frozenset[str](), likely)
        ]
        found.append(max(ways, key=lambda memory: memory.peak_bytes))
    return tuple(found)


def rank_memory(
    graph: Graph,
    tables: UnitTables,
    rank: int,
    precedence: Precedence,
    direct: Collection[str],
    certain: Collection[str] | None = None,
) -> DeviceMemory:
    """What one rank needs.

    Parameters
    ----------
    graph, tables : the layer DAG, and verified tables.
    precedence : of ``tables``.
    direct : the layers whose kernels compute straight into memory that they are given.
    certain : those of them of which that is certain (default: all). The results of others are
        counted a second time while their kernels run.
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
        packed_bytes=_packed_bytes(graph, units),
        arena_bytes=lay_out(graph, tables, rank, precedence, loose).size_bytes,
        live_bytes=live_bytes(
            graph, units, loose, found if certain is None else frozenset(certain)
        ),
    )


def _packed_bytes(graph: Graph, units: tuple[Unit, ...]) -> int:
    """Pieces of a layer share what the engines here keep, save oneDNN, which packs for each."""
    found: dict[tuple[str, str, object], int] = {}
    for unit in units:
        layer = graph.by_name[unit.layer]
        alone = unit.engine == "onednn" or layer.divided != "rows"
        key = (unit.layer, unit.engine, unit.rows if alone else None)
        if key not in found:
            found[key] = likely_kept_bytes(graph, layer, unit.rows, unit.engine)
    return sum(found.values())


def _likely_direct(graph: Graph, units: tuple[Unit, ...]) -> frozenset[str]:
    layers = (graph.by_name[unit.layer] for unit in units)
    return frozenset(layer.name for layer in layers if not _stays(layer))


def _stays(layer: Layer) -> bool:
    """Whether a layer certainly has no result of its own to put anywhere."""
    views = all(step.target in VIEWS for step in layer.steps)
    return views or layer.divided != "rows"


def live_bytes(
    graph: Graph, units: Sequence[Unit], loose: frozenset[str], direct: frozenset[str]
) -> int:
    """The most that is alive outside of the arena while ``units`` run in this order.

    It is that of the table unless a message is late and another unit runs meanwhile, whose
    result, if ``loose``, then lives for longer.
    """
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
