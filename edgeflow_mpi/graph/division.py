"""Other ways to divide a layer than by the rows of its map, as another graph for the model.

Where few rows are left, a layer's *outputs* can be divided instead: every rank computes some
output channels, from all of the input and its own part of the weights. And a wide linear layer
can be divided by its *inputs*: every rank multiplies the rows or channels that it has anyway by
the part of the weights that belongs to them, and the sums of what they find are the answer.

A *division* says which layers are divided so. It is part of a plan: :func:`with_division` makes
the graph that the plan is for. There a layer's rows are its output channels, or those of its
input; whoever plans, compiles, checks or runs it need not know what rows are. What it does not
say follows: a layer that reads something divided by channels and is not itself in the division
is computed whole, by every rank that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.channels import CHANNELS, LINEAR, RESHAPES, by_channels
from edgeflow_mpi.graph.draft import renumber
from edgeflow_mpi.graph.needs import Needs, native_calls
from edgeflow_mpi.graph.types import (
    Arg,
    Graph,
    In,
    Layer,
    Origin,
    Portion,
    Step,
    TensorSpec,
    Var,
    Weight,
)

How: TypeAlias = Literal["outputs", "inputs"]
Division: TypeAlias = tuple[tuple[str, How], ...]
"""(layer, how it is divided), in the order of the graph; empty for the model's own graph."""

SHOWN = 3
"""So many layers are named in words."""
PART = ".part"
"""Behind the name of a layer divided by its inputs: the layer of its summands."""


def with_division(graph: Graph, division: Division) -> Graph:
    """The same model with some layers divided by ``outputs`` or by ``inputs``.

    Layers keep their names and their order. A layer divided by its inputs becomes two: one
    that makes summands, and one of the old name that adds them up and goes on from there.

    Raises
    ------
    PlanError
        Where the graph has no such layer or it cannot be divided so.
    """
    if not division:
        return graph
    wanted: Mapping[str, How] = dict(division)
    unknown = [name for name in wanted if name not in graph.by_name]
    if unknown:
        raise PlanError(
            f"the plan divides {unknown[0]}, a layer that {graph.name} does not have: it was made "
            "for another model, so this one needs a plan of its own"
        )
    made = _Made(graph, {}, {})
    for layer in graph.layers:
        _DIVIDERS[wanted.get(layer.name, "rows")](made, layer)
    read = {name for layer in made.layers.values() for name in layer.inputs}
    # A flattening that was there for a layer that is now divided by its inputs is not needed.
    layers = tuple(layer for layer in made.layers.values() if layer.pinned or layer.name in read)
    return replace(graph, layers=layers, origins=tuple(made.origins.items()))


def divided(graph: Graph, needs: Needs, division: Division) -> tuple[Graph, Needs]:
    """:func:`with_division` and the row algebra of what it makes; ``needs`` is ``graph``'s."""
    if not division:
        return graph, needs
    made = with_division(graph, division)
    return made, Needs(made, like=needs)


def in_words(division: Division) -> str:
    """Which layers are divided how, the first few by name: a list without a verb."""
    parts = []
    for how in ("inputs", "outputs"):
        names = [name for name, its in division if its == how]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{', '.join(names[:SHOWN])}{more} by {how}")
    return "; ".join(parts)


def can_divide(graph: Graph, layer: Layer, how: How, others: Division = ()) -> bool:
    """Whether ``layer`` of a model's own graph can be divided so, given how ``others`` are."""
    if how == "outputs":
        return layer.divided == "rows" and by_channels(layer, native_calls(graph, layer))
    return _product(with_division(graph, others), layer) is not None


@dataclass
class _Made:
    """What has been made of a graph's layers, front to back, and their origins."""

    graph: Graph
    layers: dict[str, Layer]
    origins: dict[str, Origin]

    def add(self, layer: Layer, native: Layer, part: Portion = "all") -> None:
        self.layers[layer.name] = layer
        origin = Origin(self.graph.signatures[native.name], native.rows, part)
        self.origins[layer.name] = origin

    def by_channels(self, layer: Layer) -> bool:
        """Whether a layer reads anything that is divided by channels."""
        return any(self.layers[name].divided == "outputs" for name in layer.inputs)

    def so_far(self) -> Graph:
        return replace(self.graph, layers=tuple(self.layers.values()))


def _rows(made: _Made, layer: Layer) -> None:
    """As it was, unless it reads channels."""
    if not made.by_channels(layer):
        made.add(layer, layer)
    elif layer.kind == "output":
        out = made.layers[layer.inputs[0]].out
        made.add(replace(layer, out=out, rows=out.rows), layer)
    else:
        rows = layer.native.rows
        whole = replace(layer, rows=rows, divisible=False, combine=None, divided="whole")
        made.add(whole, layer)


def _outputs(made: _Made, layer: Layer) -> None:
    if not by_channels(layer, native_calls(made.so_far(), layer)):
        raise PlanError(
            f"the plan divides {layer.name} by its output channels, which cannot be computed by "
            "themselves"
        )
    order = layer.out.memory_order
    usual = tuple(range(len(layer.out.shape)))
    out = replace(layer.out, axis=CHANNELS, order=None if order == usual else order)
    divided = replace(
        layer, out=out, rows=out.rows, divisible=True, combine=None, divided="outputs"
    )
    made.add(divided, layer, "outputs")


def _inputs(made: _Made, layer: Layer) -> None:
    product = _product(made.so_far(), layer)
    if product is None:
        raise PlanError(
            f"the plan divides {layer.name} by its inputs, but it is no linear layer on something "
            "that is divided"
        )
    first = layer.steps[0]
    args = dict(first.args)
    bias = args["bias"]
    out = replace(first.out, axis=None)
    step = Step(
        LINEAR, (("input", In(0)), ("weight", args["weight"]), ("bias", None)), out, first.select
    )
    producer = made.layers[product]
    part = Layer(
        layer.name + PART, "compute", (product,), (step,), out, producer.rows, divisible=True,
        combine="sum", macs=layer.macs, divided="inputs",
    )  # fmt: skip
    made.add(part, layer, "inputs")
    target: tuple[str, tuple[tuple[str, Arg], ...]] = ("aten.alias.default", (("self", In(0)),))
    if isinstance(bias, Weight):
        target = ("aten.add.Tensor", (("self", In(0)), ("other", bias), ("alpha", 1)))
    variables: dict[int, Arg] = {j: Var(j) for j in range(len(layer.steps))}
    rest = [
        replace(s, args=tuple((key, renumber(arg, {0: In(0)}, variables)) for key, arg in s.args))
        for s in layer.steps[1:]
    ]
    steps = (Step(*target, out), *rest)
    made.add(replace(layer, inputs=(part.name,), steps=steps, macs=0), layer, "rest")


_DIVIDERS = {"rows": _rows, "outputs": _outputs, "inputs": _inputs}


def _product(graph: Graph, layer: Layer) -> str | None:
    """What a linear layer multiplies: a divided tensor, flattened perhaps; None for another.

    The flattening may be a layer of its own, which reads that tensor.
    """
    if layer.kind != "compute" or layer.combine or not layer.steps or layer.divided != "rows":
        return None
    first = layer.steps[0]
    args = dict(first.args)
    if first.target != LINEAR or args["input"] != In(0) or len(layer.inputs) != 1:
        return None
    if any(In(0) in step.refs for step in layer.steps[1:]) or len(first.out.shape) != 2:
        return None
    weight = args["weight"]
    producer = graph.by_name[layer.inputs[0]]
    if not isinstance(weight, Weight) or producer.kind != "compute":
        return None
    if flattens(producer):
        producer = graph.by_name[producer.inputs[0]]
    fits = producer.rows > 1 and not producer.combine and producer.kind == "compute"
    spec = producer.out
    features = graph.weight_specs[weight.name].shape[1]
    flat = TensorSpec((spec.shape[0], features), spec.dtype, None)
    by_dimension = spec.axis is not None and spec.axis >= CHANNELS
    same = len(spec.shape) >= 2 and spec.shape[0] == first.out.shape[0]
    elements = flat.size_bytes == replace(spec, wire=None).size_bytes
    return producer.name if fits and by_dimension and same and elements else None


def multiplies(layer: Layer) -> bool:
    """Whether a layer is a linear one, with what follows it."""
    return bool(layer.steps) and layer.steps[0].target == LINEAR


def flattens(layer: Layer) -> bool:
    """Whether a layer only writes its one input in another shape, of two dimensions."""
    chain = all(
        step.target in RESHAPES and step.refs == (Var(j - 1) if j else In(0),)
        for j, step in enumerate(layer.steps)
    )
    return bool(layer.steps) and chain and len(layer.out.shape) == 2
