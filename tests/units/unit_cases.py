"""Small graphs made by hand, and random graphs and plans, for the tests of unit tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, TensorSpec, Weight
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.spans import EMPTY, Span, from_breakpoints
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.tables import UnitTables

CHANNELS, WIDTH = 2, 4


@dataclass
class GraphBuilder:
    """Adds layers one by one; every method returns the new layer's name."""

    name: str
    layers: list[Layer] = field(default_factory=list)
    weights: dict[str, TensorSpec] = field(default_factory=dict)

    def spec(self, name: str) -> TensorSpec:
        return next(layer.out for layer in self.layers if layer.name == name)

    def input(self, height: int, name: str = "x") -> str:
        out = TensorSpec((1, CHANNELS, height, WIDTH), "float32", 2)
        return self._add(Layer(name, "input", (), (), out, out.rows, divisible=True))

    def conv(
        self,
        name: str,
        source: str,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
    ) -> str:
        spec = self.spec(source)
        height = (spec.rows + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        weight = f"{name}.weight"
        self.weights[weight] = TensorSpec((CHANNELS, spec.shape[1], kernel, 1), "float32", None)
        args = (
            ("input", In(0)),
            ("weight", Weight(weight)),
            ("bias", None),
            ("stride", (stride, 1)),
            ("padding", (padding, 0)),
            ("dilation", (dilation, 1)),
            ("groups", 1),
        )
        return self._compute(name, (source,), "aten.conv2d.default", args, spec.shape_of(height))

    def add(self, name: str, first: str, second: str) -> str:
        args = (("self", In(0)), ("other", In(1)), ("alpha", 1))
        shape = self.spec(first).shape
        return self._compute(name, (first, second), "aten.add.Tensor", args, shape)

    def scale(self, name: str, features: str, factors: str) -> str:
        args = (("self", In(0)), ("other", In(1)))
        shape = self.spec(features).shape
        return self._compute(name, (features, factors), "aten.mul.Tensor", args, shape)

    def cat(self, name: str, sources: Sequence[str]) -> str:
        args = (("tensors", tuple(In(i) for i in range(len(sources)))), ("dim", 1))
        specs = [self.spec(source) for source in sources]
        shape = (1, sum(spec.shape[1] for spec in specs), *specs[0].shape[2:])
        return self._compute(name, tuple(sources), "aten.cat.default", args, shape)

    def flip(self, name: str, source: str) -> str:
        """A layer that cannot be divided: every row depends on all rows."""
        args = (("self", In(0)), ("dims", (2,)))
        return self._whole(name, source, "aten.flip.default", args, self.spec(source))

    def pool(self, name: str, source: str) -> str:
        """Global sums over a map, as summands."""
        spec = self.spec(source)
        out = TensorSpec((1, spec.shape[1], 1, 1), "float32", None)
        args = (("self", In(0)), ("dim", (2, 3)), ("keepdim", True), ("dtype", None))
        step = Step("aten.sum.dim_IntList", args, out)
        layer = Layer(
            name, "compute", (source,), (step,), out, spec.rows, divisible=True, combine="sum"
        )
        return self._add(layer)

    def gate(self, name: str, source: str) -> str:
        """A small layer that is not divided."""
        return self._whole(
            name, source, "aten.sigmoid.default", (("self", In(0)),), self.spec(source)
        )

    def output(self, source: str, name: str = "y") -> str:
        out = self.spec(source)
        return self._add(Layer(name, "output", (source,), (), out, out.rows, divisible=True))

    def graph(self) -> Graph:
        outputs = tuple(layer.name for layer in self.layers if layer.kind == "output")
        return Graph(self.name, tuple(self.layers), tuple(self.weights.items()), outputs)

    def _compute(
        self,
        name: str,
        inputs: tuple[str, ...],
        target: str,
        args: tuple[tuple[str, Arg], ...],
        shape: tuple[int, ...],
    ) -> str:
        out = TensorSpec(shape, "float32", 2)
        step = Step(target, args, out)
        return self._add(Layer(name, "compute", inputs, (step,), out, out.rows, divisible=True))

    def _whole(
        self,
        name: str,
        source: str,
        target: str,
        args: tuple[tuple[str, Arg], ...],
        out: TensorSpec,
    ) -> str:
        step = Step(target, args, TensorSpec(out.shape, out.dtype, None))
        return self._add(Layer(name, "compute", (source,), (step,), out, out.rows, divisible=False))

    def _add(self, layer: Layer) -> str:
        self.layers.append(layer)
        return layer.name


@dataclass(frozen=True)
class Case:
    """A graph and a plan for it."""

    graph: Graph
    plan: Plan

    @property
    def needs(self) -> Needs:
        return Needs(self.graph)

    def compile(self) -> UnitTables:
        return compile_tables(self.graph, self.needs, self.plan)


def make_plan(graph: Graph, ranks: int, spans: Mapping[str, LayerPlan]) -> Plan:
    """A plan in the graph's order; layers that ``spans`` leaves out are whole on rank 0."""
    layers = {
        layer.name: spans.get(layer.name, LayerPlan.whole(layer.rows, ranks, 0))
        for layer in graph.layers
    }
    return Plan("by_hand", ranks, layers, tuple(layers), predicted_s=0.0125)


def split_at(*breakpoints: int) -> LayerPlan:
    """Rank i computes and owns rows from breakpoint i to the next."""
    return LayerPlan.split(from_breakpoints(breakpoints))


def chain() -> Case:
    """Three convolutions, the second strided, over two ranks."""
    b = GraphBuilder("chain")
    x = b.input(9)
    a = b.conv("conv1", x, kernel=3, padding=1)
    c = b.conv("conv2", a, kernel=3, stride=2, padding=1)
    b.output(b.conv("conv3", c, kernel=3, padding=1))
    spans = {
        "conv1": split_at(0, 5, 9),
        "conv2": split_at(0, 3, 5),
        # Rank 0 recomputes the row of conv3 that rank 1 owns.
        "conv3": LayerPlan((Span(0, 2), Span(2, 5)), (Span(0, 3), Span(2, 5))),
    }
    return Case(b.graph(), make_plan(b.graph(), 2, spans))


def residual() -> Case:
    """A residual block with a strided branch over three ranks, one of which idles in part."""
    b = GraphBuilder("residual")
    x = b.input(7)
    stem = b.conv("stem", x, kernel=1)
    main = b.conv("block.conv1", stem, kernel=3, stride=2, padding=1)
    main = b.conv("block.conv2", main, kernel=3, padding=1)
    short = b.conv("block.down", stem, kernel=1, stride=2)
    b.output(b.add("block.add", main, short))
    spans = {
        "stem": split_at(0, 2, 5, 7),
        "block.conv1": split_at(0, 2, 2, 4),
        "block.conv2": split_at(0, 1, 3, 4),
        "block.down": split_at(0, 2, 4, 4),
        "block.add": split_at(0, 2, 3, 4),
    }
    return Case(b.graph(), make_plan(b.graph(), 3, spans))


def squeeze() -> Case:
    """Squeeze and excitation over three ranks: summands, and a gate that all ranks compute."""
    b = GraphBuilder("squeeze")
    x = b.input(6)
    features = b.conv("conv", x, kernel=3, padding=1)
    pooled = b.pool("pool", features)
    gate = b.gate("gate", pooled)
    scaled = b.scale("scale", features, gate)
    b.output(b.flip("flip", scaled))
    spans = {
        "conv": split_at(0, 3, 5, 6),
        "pool": split_at(0, 3, 5, 6),
        "gate": LayerPlan.whole(1, 3, 0, frozenset({1, 2})),
        "scale": split_at(0, 3, 5, 6),
        "flip": LayerPlan.whole(6, 3, 2, frozenset({1})),
    }
    return Case(b.graph(), make_plan(b.graph(), 3, spans))


BY_HAND = {"chain": chain, "residual": residual, "squeeze": squeeze}


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """DAGs of convolutions, sums, concatenations, whole layers and squeezes."""
    b = GraphBuilder("random")
    maps = [b.input(draw(st.integers(1, 13)))]
    scalars: list[str] = []
    for i in range(draw(st.integers(1, 9))):
        source = draw(st.sampled_from(maps))
        alike = [m for m in maps if b.spec(m).shape == b.spec(source).shape and m != source]
        same_height = [m for m in maps if b.spec(m).rows == b.spec(source).rows and m != source]
        gates = [s for s in scalars if b.spec(s).shape[1] == b.spec(source).shape[1]]
        kinds = ["conv", "conv", "flip", "pool"]
        kinds += ["add"] * bool(alike) + ["cat"] * bool(same_height) + ["scale"] * bool(gates)
        kinds += ["gate"] * bool(scalars)
        name = f"l{i}"
        match draw(st.sampled_from(kinds)):
            case "conv":
                dilation = draw(st.integers(1, 2))
                padding = draw(st.integers(0, 2))
                padded = b.spec(source).rows + 2 * padding
                kernel = draw(st.integers(1, min(5, (padded - 1) // dilation + 1)))
                stride = draw(st.integers(1, 4))
                maps.append(b.conv(name, source, kernel, stride, padding, dilation))
            case "flip":
                maps.append(b.flip(name, source))
            case "pool":
                scalars.append(b.pool(name, source))
            case "add":
                maps.append(b.add(name, source, draw(st.sampled_from(alike))))
            case "cat":
                maps.append(b.cat(name, [source, draw(st.sampled_from(same_height))]))
            case "scale":
                maps.append(b.scale(name, source, draw(st.sampled_from(gates))))
            case "gate":
                scalars.append(b.gate(name, draw(st.sampled_from(scalars))))
    read = {name for layer in b.layers for name in layer.inputs}
    summands = {layer.name for layer in b.layers if layer.combine}
    for name in [layer.name for layer in b.layers]:
        if name not in read:
            source = b.gate(f"{name}_sum", name) if name in summands else name
            b.output(source, f"{name}_out")
    return b.graph()


@st.composite
def plans(draw: st.DrawFn, graph: Graph, max_ranks: int = 4) -> Plan:
    """Any valid plan: empty spans, recomputed rows, replicas, any topological order."""
    ranks = draw(st.integers(1, max_ranks))
    layers = {layer.name: draw(_layer_plans(layer, ranks)) for layer in graph.layers}
    return Plan("random", ranks, layers, draw(_orders(graph)), draw(st.none() | st.floats(0, 9)))


@st.composite
def _layer_plans(draw: st.DrawFn, layer: Layer, ranks: int) -> LayerPlan:
    if layer.pinned:
        return LayerPlan.whole(layer.rows, ranks, 0)
    everyone = st.sets(st.integers(0, ranks - 1))
    if not layer.divisible:
        owner = draw(st.integers(0, ranks - 1))
        return LayerPlan.whole(layer.rows, ranks, owner, frozenset(draw(everyone)))
    cuts = draw(st.lists(st.integers(0, layer.rows), min_size=ranks - 1, max_size=ranks - 1))
    owned = from_breakpoints([0, *sorted(cuts), layer.rows])
    if layer.combine:
        return LayerPlan.split(owned)
    grown = draw(everyone)
    computed = [
        span.hull(Span.of(*sorted(draw(st.tuples(*[st.integers(0, layer.rows)] * 2)))))
        if rank in grown
        else span
        for rank, span in enumerate(owned)
    ]
    return LayerPlan(owned, tuple(computed))


@st.composite
def _orders(draw: st.DrawFn, graph: Graph) -> tuple[str, ...]:
    order: list[str] = []
    left = [layer.name for layer in graph.layers]
    while left:
        ready = [name for name in left if set(graph.by_name[name].inputs) <= set(order)]
        order.append(draw(st.sampled_from(ready)))
        left.remove(order[-1])
    return tuple(order)


@st.composite
def cases(draw: st.DrawFn, max_ranks: int = 4) -> Case:
    graph = draw(graphs())
    return Case(graph, draw(plans(graph, max_ranks)))


def reads_of(case: Case, layer: str, row: int) -> tuple[Span, ...]:
    """Rows of each input that one row of a layer needs."""
    return tuple(
        Span.of(int(low[row]), int(high[row])) if high[row] > low[row] else EMPTY
        for low, high in case.needs.table(layer)
    )
