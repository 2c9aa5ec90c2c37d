"""Models of which some layers are divided by their outputs or their inputs."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from edgeflow_mpi.graph.division import Division, How, can_divide, with_division
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from tests.inprocess import Model


def divided(model: Model, division: Division) -> Model:
    """The model with some layers divided otherwise than by rows."""
    graph = with_division(model.graph, division)
    return replace(model, graph=graph, needs=Needs(graph))


def random_division(graph: Graph, random: Random, share: float = 0.5) -> Division:
    """Any layers that can be divided so, about a ``share`` of them, one after the other."""
    found: list[tuple[str, How]] = []
    for layer in graph.layers:
        ways: list[How] = ["outputs", "inputs"]
        random.shuffle(ways)
        for how in ways:
            chosen = random.random() < share
            if chosen and can_divide(graph, layer, how, tuple(found)):
                found.append((layer.name, how))
                break
    return tuple(found)


def everything(graph: Graph) -> Division:
    """All layers that can be divided by their outputs."""
    return tuple((ly.name, "outputs") for ly in graph.layers if can_divide(graph, ly, "outputs"))
