"""A small graph, and clusters for the tests of planning."""

from __future__ import annotations

from edgeflow_mpi.cluster.cluster_file import cluster_profile, parse_cluster
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, TensorSpec, Weight
from edgeflow_mpi.report.candidates import Task


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


def branches(width: int = 2048) -> Graph:
    """input -> two linear layers side by side -> their sum -> output; nothing divides by rows."""
    spec = TensorSpec((1, width), "float32", None)
    layers = [Layer("x", "input", (), (), spec, 1, False)]
    for name in ("a", "b"):
        linear: tuple[tuple[str, Arg], ...] = (
            ("input", In(0)), ("weight", Weight(f"w{name}")), ("bias", None),
        )  # fmt: skip
        step = Step("aten.linear.default", linear, spec)
        layers.append(Layer(name, "compute", ("x",), (step,), spec, 1, False, None, width * width))
    both: tuple[tuple[str, Arg], ...] = (("self", In(0)), ("other", In(1)))
    step = Step("aten.add.Tensor", both, spec)
    layers.append(Layer("sum", "compute", ("a", "b"), (step,), spec, 1, False))
    layers.append(Layer("y", "output", ("sum",), (), spec, 1, False))
    weight = TensorSpec((width, width), "float32", None)
    return Graph("two", tuple(layers), (("wa", weight), ("wb", weight)), ("y",))


GRAPH = convolutions()
LARGE = convolutions("large", rows=48, channels=48)
BRANCHES = branches()


def cluster(
    *gflops: float,
    mbps: float = 100,
    ms: float = 0.1,
    memory_mb: float | None = None,
    more: str = "",
) -> str:
    """A cluster file with devices d0, d1, ... of these speeds."""
    memory = "" if memory_mb is None else f", memory_mb: {memory_mb}"
    devices = "".join(
        f"  - {{name: d{k}, gflops: {speed}, overhead_us: 5{memory}}}\n"
        for k, speed in enumerate(gflops)
    )
    links = f"links: {{default: {{bandwidth_mbps: {mbps}, latency_ms: {ms}}}}}\n"
    return f"devices:\n{devices}{links}{more}"


def task(text: str, graph: Graph = GRAPH, *, seed: int = 0) -> Task:
    """What the plan command plans for a cluster file with this text."""
    spec = parse_cluster(text, "test")
    profile = cluster_profile(spec, graph)
    return Task(graph, Needs(graph), profile, spec.excluded, seed, plan_seconds=0.3)
