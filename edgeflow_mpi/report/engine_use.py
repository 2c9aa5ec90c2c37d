"""Who computes how much: units and work of every engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.units.tables import Unit


@dataclass(frozen=True)
class EngineUse:
    """What one engine computes of one request.

    Attributes
    ----------
    name : str
        The engine's.
    units : int
        Execution units.
    macs : float
        Multiply-adds in them, as the graph counts them; recomputed rows count again.
    """

    name: str
    units: int
    macs: float


def engine_uses(graph: Graph, computed: Iterable[tuple[Unit, str]]) -> tuple[EngineUse, ...]:
    """Of compute units and the names of the engines that compute them; most work first."""
    return summed(
        EngineUse(engine, 1, layer.macs * unit.rows.rows / max(layer.rows, 1))
        for unit, engine in computed
        for layer in (graph.by_name[unit.layer],)
    )


def summed(uses: Iterable[EngineUse]) -> tuple[EngineUse, ...]:
    """One entry for each engine, most work first."""
    found: dict[str, EngineUse] = {}
    for use in uses:
        known = found.get(use.name, EngineUse(use.name, 0, 0.0))
        found[use.name] = EngineUse(use.name, known.units + use.units, known.macs + use.macs)
    return tuple(sorted(found.values(), key=lambda use: (-use.macs, -use.units, use.name)))


def engines_text(uses: Iterable[EngineUse], wanted: str = "") -> str:
    """Shares of the work, and what the engine that was ``wanted`` for all cannot do.

    Engines that do none of the multiplying are left out: nearly all of a network's time is
    there.
    """
    found = summed(uses)
    work = sum(use.macs for use in found)
    shares = [
        f"{use.name} {100 * use.macs / work:.0f} % of the work ({_units(use.units)})"
        for use in found
        if use.macs
    ]
    text = ", ".join(shares) or ", ".join(f"{use.name} {_units(use.units)}" for use in found)
    others = sum(use.units for use in found if use.name != wanted)
    if wanted and others:
        text += f"; {wanted} cannot do the layers of {_units(others)}"
    return text


def _units(count: int) -> str:
    return f"{count} unit{'s' * (count != 1)}"


def engines_json(uses: Iterable[EngineUse]) -> dict[str, dict[str, float]]:
    """Units, and the share of the work, of every engine."""
    found = summed(uses)
    work = sum(use.macs for use in found)
    return {
        use.name: {"units": use.units, "work_share": use.macs / work if work else 0.0}
        for use in found
    }
