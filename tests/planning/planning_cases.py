"""A small graph, and clusters for the tests of planning."""

from __future__ import annotations

from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, TensorSpec, Weight


def convolutions(name: str = "three", *, rows: int = 16, channels: int = 8) -> Graph:
    """input -> three 3x3 convolutions -> output."""
    spec = TensorSpec((1, channels, rows, rows), "float32", 2)
    weights, layers, at = [], [Layer("x", "input", (), (), spec, rows, False)], "x"
    for k in range(3):
        weight = TensorSpec((channels, channels, 3, 3), "float32", None)
        weights.append((f"w{k}", weight))
        args: tuple[tuple[str, Arg], ...] = (
            ("input", In(0)), ("weight", Weight(f"w{k}")), ("bias", None), ("stride", (1, 1)),
            ("padding", (1, 1)), ("dilation", (1, 1)), ("groups", 1),
        )  # fmt: skip
        step = Step("aten.conv2d.default", args, spec)
        macs = rows * rows * channels * channels * 9
        layers.append(Layer(f"c{k}", "compute", (at,), (step,), spec, rows, True, None, macs))
        at = f"c{k}"
    layers.append(Layer("y", "output", (at,), (), spec, rows, False))
    return Graph(name, tuple(layers), tuple(weights), ("y",))


GRAPH = convolutions()
