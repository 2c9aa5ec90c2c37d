"""A layer graph as JSON and back, to the last bit: :attr:`Graph.fingerprint` tells."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, Symbol, TensorSpec, Var, Weight

_Json: TypeAlias = Any


def graph_to_json(graph: Graph) -> str:
    """One line; weights are named in it and travel apart."""
    return json.dumps(
        {
            "name": graph.name,
            "fingerprint": graph.fingerprint,
            "layers": [_layer(layer) for layer in graph.layers],
            "weights": [(name, _spec(spec)) for name, spec in graph.weights],
            "output_names": graph.output_names,
        },
        separators=(",", ":"),
    )


def graph_from_json(text: str) -> Graph:
    """What :func:`graph_to_json` wrote.

    Raises
    ------
    ModelError
        For anything else, and for a graph that is not the one that was written.
    """
    try:
        values = json.loads(text)
        graph = Graph(
            values["name"],
            tuple(_read_layer(layer) for layer in values["layers"]),
            tuple((name, _read_spec(spec)) for name, spec in values["weights"]),
            tuple(values["output_names"]),
        )
        same = graph.fingerprint == values["fingerprint"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"this is no graph ({type(error).__name__}: {error})") from error
    if not same:
        raise ModelError("the graph is not the one that was written")
    return graph


def _spec(spec: TensorSpec) -> _Json:
    return [spec.shape, spec.dtype, spec.axis, spec.wire, spec.order]


def _read_spec(value: _Json) -> TensorSpec:
    shape, dtype, axis, wire, order = value
    return TensorSpec(tuple(shape), dtype, axis, wire, None if order is None else tuple(order))


def _layer(layer: Layer) -> _Json:
    return [
        layer.name, layer.kind, layer.inputs, [_step(step) for step in layer.steps],
        _spec(layer.out), layer.rows, layer.divisible, layer.combine, layer.macs,
        layer.divided,
    ]  # fmt: skip


def _read_layer(value: _Json) -> Layer:
    name, kind, inputs, steps, out, *rest = value
    return Layer(
        name, kind, tuple(inputs), tuple(_read_step(step) for step in steps), _read_spec(out), *rest
    )


def _step(step: Step) -> _Json:
    return [step.target, [(key, _arg(arg)) for key, arg in step.args], _spec(step.out), step.select]


def _read_step(value: _Json) -> Step:
    target, args, out, select = value
    bound = tuple((key, _read_arg(arg)) for key, arg in args)
    return Step(target, bound, _read_spec(out), select)


def _arg(arg: Arg) -> _Json:
    """An argument; JSON has numbers and strings itself, the rest is an object of one key."""
    match arg:
        case In(index):
            return {"in": index}
        case Var(step):
            return {"var": step}
        case Weight(name):
            return {"weight": name}
        case Symbol(kind, name):
            return {"symbol": [kind, name]}
        case complex():
            return {"complex": [arg.real, arg.imag]}
        case tuple():
            return [_arg(item) for item in arg]
        case _:
            return arg


def _read_arg(value: _Json) -> Arg:
    if isinstance(value, list):
        return tuple(_read_arg(item) for item in value)
    if not isinstance(value, dict):
        plain: Arg = value
        return plain
    ((kind, content),) = value.items()
    match kind:
        case "in":
            return In(content)
        case "var":
            return Var(content)
        case "weight":
            return Weight(content)
        case "symbol":
            return Symbol(*content)
        case "complex":
            return complex(*content)
        case _:
            raise ValueError(f"there is no operand {kind!r}")
