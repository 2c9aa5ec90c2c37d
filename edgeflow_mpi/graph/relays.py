"""Let what is computed elsewhere come back to rank 0 before anybody reads it.

Who computes a row sends it: that is how layers exchange rows here. Systems that scatter and
gather every layer through one host do it otherwise, and a plan alone cannot say so, as rank 0
cannot send what it did not compute. A *relay* layer can: it is the identity, whole on rank 0,
between a layer and its readers, so that its unit waits for all rows and then sends every
reader's rows out again. It is a layer like any other to whoever compiles, checks, simulates or
runs a plan.
"""

from __future__ import annotations

from dataclasses import replace

from edgeflow_mpi.graph.types import Graph, In, Layer, Step


def with_relays(graph: Graph) -> Graph:
    """The same model with a relay behind every layer that can be divided and has weights.

    Only layers that answers alone read have none: an answer is on rank 0 anyway. Names and
    signatures of the layers stay as they are, so a profile of ``graph`` serves.
    """
    relayed: dict[str, str] = {}
    layers: list[Layer] = []
    for layer in graph.layers:
        if layer.kind != "output":
            inputs = tuple(relayed.get(name, name) for name in layer.inputs)
            layers.append(replace(layer, inputs=inputs))
        else:
            layers.append(layer)
        readers = [graph.by_name[name] for name in graph.consumers[layer.name]]
        if scattered(layer) and any(not reader.pinned for reader in readers):
            relay = _relay(layer)
            relayed[layer.name] = relay.name
            layers.append(relay)
    return replace(graph, layers=tuple(layers))


def scattered(layer: Layer) -> bool:
    """Whether layer-wise scatter and gather divides it: it has rows, and work worth moving."""
    return layer.kind == "compute" and layer.splits and bool(layer.weights)


def _relay(layer: Layer) -> Layer:
    """The identity on the tensor of ``layer``; summands are added up."""
    step = Step("aten.alias.default", (("self", In(0)),), replace(layer.out, axis=None))
    return Layer(
        f"{layer.name}.relay", "relay", (layer.name,), (step,), layer.out, layer.out.rows,
        divisible=False,
    )  # fmt: skip
