"""Small graphs and profiles for the partitioner's tests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import numpy as np

from edgeflow_mpi.cluster.profile import Device, LayerCost, Link, Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, TensorSpec, Weight
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.timeline import LayerProblem, Timeline
from edgeflow_mpi.spans import from_breakpoints


class Builder:
    """Builds a graph one layer at a time; every method returns the new layer's name."""

    def __init__(self, rows: int = 16, channels: int = 4, width: int = 4) -> None:
        self.layers: list[Layer] = []
        self._weights: list[tuple[str, TensorSpec]] = []
        spec = TensorSpec((1, channels, rows, width), "float32", 2)
        self._add("input", "input", (), (), spec, rows, divisible=False)

    def conv(
        self, source: str, *, kernel: int = 3, stride: int = 1, padding: int | None = None,
        channels: int | None = None,
    ) -> str:  # fmt: skip
        spec = self._out(source)
        _, c_in, height, width = spec.shape
        c_out = c_in if channels is None else channels
        pad = kernel // 2 if padding is None else padding
        name = self._name("conv")
        weight = TensorSpec((c_out, c_in, kernel, kernel), "float32", None)
        self._weights.append((f"{name}.weight", weight))
        out = TensorSpec(
            (1, c_out, (height + 2 * pad - kernel) // stride + 1,
             (width + 2 * pad - kernel) // stride + 1), "float32", 2,
        )  # fmt: skip
        args: tuple[tuple[str, Arg], ...] = (
            ("input", In(0)), ("weight", Weight(f"{name}.weight")), ("bias", None),
            ("stride", (stride, stride)), ("padding", (pad, pad)), ("dilation", (1, 1)),
            ("groups", 1),
        )  # fmt: skip
        steps = (Step("aten.conv2d.default", args, out),)
        macs = out.shape[2] * out.shape[3] * c_out * c_in * kernel * kernel
        return self._add(name, "compute", (source,), steps, out, out.rows, macs=macs)

    def add(self, first: str, second: str, *, target: str = "aten.add.Tensor") -> str:
        out = self._out(first)
        args: tuple[tuple[str, Arg], ...] = (("self", In(0)), ("other", In(1)))
        inputs = (first, second)
        return self._add(
            self._name("add"), "compute", inputs, (Step(target, args, out),), out, out.rows
        )

    def cat(self, *sources: str) -> str:
        specs = [self._out(source) for source in sources]
        channels = sum(spec.shape[1] for spec in specs)
        out = TensorSpec((1, channels, *specs[0].shape[2:]), "float32", 2)
        args: tuple[tuple[str, Arg], ...] = (
            ("tensors", tuple(In(i) for i in range(len(sources)))), ("dim", 1),
        )  # fmt: skip
        steps = (Step("aten.cat.default", args, out),)
        return self._add(self._name("cat"), "compute", sources, steps, out, out.rows)

    def pool(self, source: str) -> str:
        """A global mean whose ranks make summands."""
        spec = self._out(source)
        out = TensorSpec((1, spec.shape[1], 1, 1), "float32", None)
        args: tuple[tuple[str, Arg], ...] = (
            ("self", In(0)), ("dim", (2, 3)), ("keepdim", True),
        )  # fmt: skip
        steps = (Step("aten.mean.dim", args, out),)
        return self._add(
            self._name("pool"), "compute", (source,), steps, out, spec.rows, combine="sum"
        )

    def tiny(self, source: str) -> str:
        """An elementwise layer on a tensor without a split axis."""
        out = TensorSpec(self._out(source).shape, "float32", None)
        steps = (Step("aten.sigmoid.default", (("self", In(0)),), out),)
        return self._add(self._name("tiny"), "compute", (source,), steps, out, 1, divisible=False)

    def whole_sum(self, first: str, second: str) -> str:
        """A sum of two tensors without a split axis."""
        out = TensorSpec(self._out(first).shape, "float32", None)
        args: tuple[tuple[str, Arg], ...] = (("self", In(0)), ("other", In(1)))
        steps = (Step("aten.add.Tensor", args, out),)
        inputs = (first, second)
        return self._add(self._name("sum"), "compute", inputs, steps, out, 1, divisible=False)

    def whole(self, source: str) -> str:
        """A layer that cannot be divided although its result has rows."""
        out = self._out(source)
        steps = (Step("aten.sort.default", (("self", In(0)),), out, 0),)
        return self._add(
            self._name("whole"), "compute", (source,), steps, out, out.rows, divisible=False
        )

    def graph(self, *outputs: str) -> Graph:
        """The finished graph; its answers are the last layer unless named."""
        names = outputs or (self.layers[-1].name,)
        for i, name in enumerate(names):
            spec = self._out(name)
            self._add(f"output{i}", "output", (name,), (), spec, spec.rows, divisible=False)
        return Graph("case", tuple(self.layers), tuple(self._weights), names)

    def _out(self, name: str) -> TensorSpec:
        return next(layer.out for layer in self.layers if layer.name == name)

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.layers)}"

    def _add(
        self, name: str, kind: str, inputs: Sequence[str], steps: tuple[Step, ...],
        out: TensorSpec, rows: int, *, divisible: bool = True, combine: str | None = None,
        macs: int = 0,
    ) -> str:  # fmt: skip
        self.layers.append(
            Layer(name, kind, tuple(inputs), steps, out, rows, divisible, combine, macs)  # type: ignore[arg-type]
        )
        return name


def chain(*, layers: int = 3, rows: int = 16, kernel: int = 3, channels: int = 4) -> Graph:
    """Convolutions, which with one channel can be divided by rows alone."""
    build = Builder(rows, channels)
    at = "input"
    for _ in range(layers):
        at = build.conv(at, kernel=kernel)
    return build.graph()


def random_graph(rng: random.Random, *, rows: int | None = None, layers: int = 8) -> Graph:
    """A small DAG with residual sums, concatenations, strides, pools and whole layers."""
    build = Builder(rows or rng.choice([3, 5, 7, 14, 16, 23]))
    maps = ["input"]
    for _ in range(layers):
        source = rng.choice(maps[-3:])
        same = [name for name in maps if build._out(name).shape == build._out(source).shape]
        height = build._out(source).rows
        alike = [name for name in maps if build._out(name).rows == height]
        kind = rng.choice(["conv", "conv", "conv", "add", "cat", "excite", "whole"])
        if kind == "add" and len(same) > 1:
            maps.append(build.add(*rng.sample(same, 2)))
        elif kind == "cat" and len(alike) > 1:
            maps.append(build.cat(*rng.sample(alike, 2)))
        elif kind == "excite":
            scale = build.tiny(build.tiny(build.pool(source)))
            maps.append(build.add(source, scale, target="aten.mul.Tensor"))
        elif kind == "whole" and rng.random() < 0.4:
            maps.append(build.whole(source))
        else:
            kernel = rng.choice([k for k in (1, 3, 5) if k <= height] or [1])
            stride = rng.choice([1, 1, 2]) if height > 3 else 1
            maps.append(build.conv(source, kernel=kernel, stride=stride))
    last = maps[-1]
    if rng.random() < 0.5:
        last = build.tiny(build.pool(last))
    if rng.random() < 0.3 and maps[-2] != "input":
        return build.graph(last, maps[-2])
    return build.graph(last)


def profile(
    graph: Graph,
    speeds: Sequence[float],
    *,
    bandwidth_bytes_s: float = 1e8,
    latency_s: float = 1e-4,
    fixed_s: float = 1e-5,
    links: Mapping[tuple[int, int], Link] | None = None,
) -> Profile:
    """Devices of ``speeds`` multiply-adds a second, and equal links unless given."""
    costs = [
        {
            graph.signatures[layer.name]: LayerCost(
                fixed_s, max(layer.macs, 64 * layer.rows) / layer.rows / speed
            )
            for layer in graph.layers
            if not layer.pinned
        }
        for speed in speeds
    ]
    n = len(speeds)
    every = {
        (i, j): Link(latency_s, bandwidth_bytes_s) for i in range(n) for j in range(n) if i != j
    }
    return Profile(
        graph.name,
        graph.fingerprint,
        tuple(Device(f"device{i}", 1, 1 << 30) for i in range(n)),
        tuple(costs),
        every | dict(links or {}),
    )


def resnet50(rows: int = 224) -> Graph:
    """A graph with the layers of ResNet-50, activations and sums fused."""
    build = Builder(rows, 3, rows)
    at = build.conv("input", kernel=7, stride=2, channels=64)
    at = build.conv(at, kernel=3, stride=2, channels=64)
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            short = build.conv(at, kernel=1, stride=step, channels=4 * width) if not block else at
            wide = build.conv(at, kernel=1, channels=width)
            wide = build.conv(wide, kernel=3, stride=step, channels=width)
            wide = build.conv(wide, kernel=1, channels=4 * width)
            at = build.add(wide, short)
    at = build.pool(at)
    build.tiny(at)
    return build.graph()


def random_profile(rng: random.Random, graph: Graph, ranks: int) -> Profile:
    """Unlike devices, unlike links in both directions, fixed costs from none to large."""
    links = {
        (i, j): Link(rng.choice([0.0, 1e-5, 3e-4]), 10 ** rng.uniform(6, 9))
        for i in range(ranks)
        for j in range(ranks)
        if i != j
    }
    speeds = [10 ** rng.uniform(6, 8) for _ in range(ranks)]
    return profile(graph, speeds, fixed_s=rng.choice([0.0, 1e-5, 2e-4]), links=links)


def random_problem(rng: random.Random, ranks: int, *, rows: int) -> LayerProblem:
    """The problem of some divided layer, its predecessors planned at random."""
    while True:
        graph = random_graph(rng, rows=rows, layers=5)
        needs = Needs(graph)
        plan = random_plan(graph, needs, ranks, rng)
        divided = [layer.name for layer in graph.layers if layer.splits]
        if not divided:
            continue
        target = rng.choice(divided)
        timeline = Timeline(graph, needs, random_profile(rng, graph, ranks))
        for layer in graph.layers:
            if layer.name == target:
                return timeline.problem(layer, range(ranks))
            timeline.commit(layer, plan.layers[layer.name])


def random_layer_problem(rng: np.random.Generator, *, ranks: int, rows: int) -> LayerProblem:
    """A problem made up without a graph: any windows, any owners, costs of all proportions."""
    ranks, rows = int(ranks), int(rows)
    producers = int(rng.integers(1, 4))
    low, high, heights = [], [], []
    for _ in range(producers):
        stride, halo = int(rng.integers(1, 3)), int(rng.integers(0, 4))
        height = stride * rows
        row = np.arange(rows + 1)
        low.append(np.clip(stride * row - halo, 0, height - 1))
        high.append(np.clip(stride * (row - 1) + 1 + halo, 1, height))
        heights.append(height)
    places = producers * (ranks - 1)
    producer = np.tile(np.repeat(np.arange(producers), ranks - 1), (ranks, 1))
    start, stop = np.zeros((2, ranks, places), dtype=np.int64)
    for m, height in enumerate(heights):
        cuts = np.array([0, *np.sort(rng.integers(0, height + 1, ranks - 1)), height])
        for i in range(ranks):
            others = [j for j in range(ranks) if j != i]
            start[i, m * (ranks - 1) : (m + 1) * (ranks - 1)] = cuts[others]
            stop[i, m * (ranks - 1) : (m + 1) * (ranks - 1)] = cuts[[j + 1 for j in others]]
    scale = 10.0 ** rng.uniform(-3, 1, 4)
    free_s = scale[0] * rng.random(ranks)
    return LayerProblem(
        rows=rows,
        fixed_s=scale[1] * rng.random(ranks) * rng.integers(0, 2),
        per_row_s=rng.random(ranks) * rng.choice([1.0, 0.1, 0.0], p=[0.8, 0.15, 0.05]),
        free_s=free_s,
        ready_s=free_s + scale[0] * rng.random(ranks) * rng.integers(0, 2),
        low=np.array(low),
        high=np.array(high),
        producer=producer,
        start=start,
        stop=stop,
        base_s=scale[2] * rng.random((ranks, places)),
        row_s=scale[3] * rng.random((ranks, places)),
    )


def every_split(rows: int, ranks: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """All breakpoints of ``rows`` rows over ``ranks`` ranks."""
    cuts = itertools.combinations_with_replacement(range(rows + 1), ranks - 1)
    return np.array([(0, *cut, rows) for cut in cuts], dtype=np.int64)


def optimum_s(problem: LayerProblem) -> float:
    """The least largest finish time over all integer breakpoints, by trying them all."""
    return float(problem.score(every_split(problem.rows, problem.ranks))[:, 0].min())


def neighbour(rng: random.Random, graph: Graph, needs: Needs, plan: Plan) -> Plan:
    """A valid plan that differs from ``plan`` in a few places: for searching good plans."""
    layers, marked, order = dict(plan.layers), set(plan.boundary_first), list(plan.order)
    for _ in range(rng.choice([1, 1, 2, 3])):
        layer = rng.choice([layer for layer in graph.layers if not layer.pinned])
        kind = rng.random()
        if kind < 0.2 and layer.splits:
            marked ^= {(layer.name, rng.randrange(plan.ranks))}
        elif kind < 0.3:
            i = rng.randrange(len(order) - 1)
            if order[i] not in graph.by_name[order[i + 1]].inputs:
                order[i], order[i + 1] = order[i + 1], order[i]
        elif layer.splits:
            layers[layer.name] = _moved(rng, graph, layer, layers, plan.ranks)
        else:
            owner = rng.randrange(plan.ranks)
            replicas = {rank for rank in range(plan.ranks) if rng.random() < 0.3}
            layers[layer.name] = LayerPlan.whole(
                layer.rows, plan.ranks, owner, frozenset() if layer.combine else frozenset(replicas)
            )
    if rng.random() < 0.3:
        _recompute(rng, graph, needs, layers)
    return Plan("search", plan.ranks, layers, tuple(order), boundary_first=frozenset(marked))


def _breakpoints(plan: LayerPlan) -> list[int]:
    found = [0]
    for span in plan.owned:
        found.append(span.stop if span else found[-1])
    return found


def _moved(
    rng: random.Random, graph: Graph, layer: Layer, layers: Mapping[str, LayerPlan], ranks: int
) -> LayerPlan:
    """One breakpoint moved, or those of an input taken over."""
    x = _breakpoints(layers[layer.name])
    divided = [name for name in layer.inputs if graph.by_name[name].splits]
    if divided and rng.random() < 0.5:
        rows = graph.by_name[divided[0]].rows
        x = [round(at * layer.rows / rows) for at in _breakpoints(layers[divided[0]])]
    elif ranks > 1:
        i = rng.randrange(1, ranks)
        x[i] = min(max(x[i] + rng.choice([-2, -1, 1, 2]), x[i - 1]), x[i + 1])
    return LayerPlan.split(from_breakpoints(x))


def _recompute(
    rng: random.Random, graph: Graph, needs: Needs, layers: dict[str, LayerPlan]
) -> None:
    """Let ranks compute what their own readers need, in some layers; elsewhere what they own."""
    for layer in reversed(graph.layers):
        if layer.pinned or not layer.splits or layer.combine:
            continue
        computed = list(layers[layer.name].owned)
        if rng.random() < 0.5:
            for name in graph.consumers[layer.name]:
                at = graph.by_name[name].inputs.index(layer.name)
                for rank, rows in enumerate(layers[name].computed):
                    if rows and not graph.by_name[name].pinned:
                        computed[rank] = computed[rank].hull(needs.of(name, rows)[at])
        layers[layer.name] = LayerPlan(layers[layer.name].owned, tuple(computed))
