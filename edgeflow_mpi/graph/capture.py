"""From an exported program to a layer graph: one draft per ATen call, then fusion.

The program must be functional (``run_decompositions({})`` makes it so). What depends on
weights alone is computed once, here; what changes nothing is skipped.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.graph.axes import assign_axes
from edgeflow_mpi.graph.draft import Draft, DraftGraph, freeze, spec_of
from edgeflow_mpi.graph.expand import expansion
from edgeflow_mpi.graph.fuse import fuse
from edgeflow_mpi.graph.types import (
    DTYPE_BYTES,
    Arg,
    Graph,
    In,
    Step,
    Symbol,
    TensorSpec,
    Weight,
)

_SAME_VALUE = {
    "aten.alias.default",
    "aten.detach.default",
    "aten.contiguous.default",
    "aten.clone.default",
    "aten.lift_fresh_copy.default",
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
}
_CONVERSIONS = ("aten._to_copy.", "aten.to.", "aten.type_as.")
_LIKE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
_SPLITS = ("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes",
           "unsafe_chunk", "tensor_split")  # fmt: skip
_LAYOUT_FREE = {"aten.view.default", "aten._unsafe_view.default"}


@dataclass(frozen=True)
class _Tensor:
    """A value that a layer computes."""

    layer: str


@dataclass(frozen=True)
class _Several:
    """An operator with several results; each ``getitem`` becomes a layer of its own."""

    node: torch.fx.Node


@dataclass(frozen=True)
class _Expanded:
    """The results of an operator that was written out in others."""

    values: tuple[_Value, ...]


_Value = _Tensor | Weight | _Several | _Expanded | None | int | float | bool | str


def capture(
    program: torch.export.ExportedProgram, name: str, output_names: Sequence[str]
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The layer graph of an exported program, and the weights its layers name.

    Parameters
    ----------
    program : ExportedProgram
        Functional (decomposed), with static shapes and in eval mode.
    name : str
        What the user calls the model.
    output_names : sequence of str
        One name per tensor output.

    Raises
    ------
    ModelError
        If the program changes its own state, has dynamic shapes, or uses an element type
        that cannot travel.
    """
    graph = _Lowering(program).run()
    assign_axes(graph)
    fuse(graph)
    frozen = freeze(graph, name, output_names)
    if len(frozen.outputs) != len(output_names):
        raise ModelError(
            f"model {name} has {len(frozen.outputs)} tensor outputs, not {len(output_names)}"
        )
    return frozen, {n: graph.weights[n].detach().contiguous() for n in frozen.weight_specs}


class _Lowering:
    """One pass over the nodes of a program, in order."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        self._graph = DraftGraph()
        self._values: dict[torch.fx.Node, _Value] = {}
        self._names: dict[torch.fx.Node, str] = {}

    def run(self) -> DraftGraph:
        signature = self._program.graph_signature
        for spec in signature.output_specs:
            if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT):
                raise ModelError(
                    f"the model changes its own state ({spec.target or spec.kind.name}): only "
                    "models whose answer depends on nothing but the request can be divided"
                )
        constants = self._constants()
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, constants)
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                self._outputs(node)
        return self._graph

    def _constants(self) -> Mapping[str, tuple[str, torch.Tensor]]:
        """Placeholder name -> (weight name, tensor)."""
        found: dict[str, tuple[str, torch.Tensor]] = {}
        stores = (self._program.state_dict, self._program.constants)
        for spec in self._program.graph_signature.input_specs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                assert spec.target is not None
                for store in stores:
                    if isinstance(store.get(spec.target), torch.Tensor):
                        found[spec.arg.name] = (spec.target, store[spec.target].detach())
        return found

    def _placeholder(
        self, node: torch.fx.Node, constants: Mapping[str, tuple[str, torch.Tensor]]
    ) -> None:
        if node.name in constants:
            target, tensor = constants[node.name]
            self._graph.weights[target] = tensor
            self._values[node] = Weight(target)
            return
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            self._values[node] = value
            return
        spec = _spec(node, value)
        self._add(Draft(node.name, "input", [], [], spec, spec.rows, divisible=False))
        self._values[node] = _Tensor(node.name)

    def _add(self, draft: Draft) -> None:
        self._graph.drafts[draft.name] = draft

    def _call(self, node: torch.fx.Node) -> _Value:
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, torch.fx.Node) and isinstance(index, int)
            value = self._values[source]
            if isinstance(value, _Several):
                return self._layer(node, value.node, index)
            if isinstance(value, _Expanded):
                return value.values[index]
            raise ModelError(f"the exported program indexes {source.name}, which is one tensor")
        if any(isinstance(self._values.get(n), _Tensor) for n in node.all_input_nodes):
            other = expansion(node)
            if other is not None:
                return self._expanded(node, other)
        result = node.meta.get("val")
        if isinstance(result, tuple | list):
            return _Several(node)
        if not isinstance(result, torch.Tensor):
            if isinstance(result, int | float | bool | str) or result is None:
                return result
            raise ModelError(f"operator {node.target} depends on the request's values or shape")
        return self._layer(node, node, None)

    def _expanded(self, node: torch.fx.Node, other: torch.fx.Graph) -> _Value:
        """The value of ``node`` from the graph of the operators that it stands for."""
        given = iter(node.all_input_nodes)
        output = other.output_node().args[0]
        for inner in other.nodes:
            if inner.op == "placeholder":
                self._values[inner] = self._values[next(given)]
            elif inner.op == "call_function":
                last = inner is output
                self._names[inner] = self._name(node) if last else f"{self._name(node)}.{inner}"
                self._values[inner] = self._call(inner)
        if isinstance(output, torch.fx.Node):
            return self._values[output]
        assert isinstance(output, Sequence)
        return _Expanded(tuple(self._values[n] for n in output if isinstance(n, torch.fx.Node)))

    def _name(self, node: torch.fx.Node) -> str:
        return self._names.get(node, node.name)

    def _layer(self, node: torch.fx.Node, call: torch.fx.Node, select: int | None) -> _Value:
        """The value of ``node``: result ``select`` of ``call``, as a layer or a constant."""
        inputs: list[str] = []
        target, bound = self._bind(call, inputs)
        _refuse_chance(call, dict(bound))
        spec = _spec(node, node.meta["val"])
        if not inputs or target.removeprefix("aten.").split(".")[0] in _LIKE:
            return self._fold(node, call, select)
        source = self._graph.drafts[inputs[0]].out
        if target in _SAME_VALUE and source.shape == spec.shape:
            return _Tensor(inputs[0])
        if target.startswith(_CONVERSIONS) and source == spec:
            return _Tensor(inputs[0])
        step = Step(target, bound, spec, select)
        if select is not None:
            step = _as_slice(step, [result.shape for result in call.meta["val"]])
        name = self._name(node)
        self._add(Draft(name, "compute", inputs, [step], spec, spec.rows, True))
        return _Tensor(name)

    def _bind(
        self, node: torch.fx.Node, inputs: list[str]
    ) -> tuple[str, tuple[tuple[str, Arg], ...]]:
        """Operator name and its arguments by name, defaults included."""
        function: Any = node.target
        if not isinstance(function, torch._ops.OpOverload):
            raise ModelError(f"the exported program calls {function}, which is not an operator")
        bound: list[tuple[str, Arg]] = []
        for place, argument in enumerate(function._schema.arguments):
            if place < len(node.args) and not argument.kwarg_only:
                value: object = node.args[place]
            elif argument.name in node.kwargs:
                value = node.kwargs[argument.name]
            else:
                value = argument.default_value
            bound.append((argument.name, self._argument(value, inputs)))
        target = str(function)
        if target in _LAYOUT_FREE:
            # Pieces are laid out as they travel best, so a view may have to copy.
            return "aten.reshape.default", (bound[0], ("shape", bound[1][1]))
        if target == "aten.as_strided.default":
            raise ModelError(
                f"{node.name} addresses memory by strides (as_strided): express it with "
                "slices, views or unfold so that it can be divided"
            )
        return target, tuple(bound)

    def _argument(self, value: object, inputs: list[str]) -> Arg:
        match value:
            case torch.fx.Node():
                known = self._values[value]
                if isinstance(known, _Tensor):
                    if known.layer not in inputs:
                        inputs.append(known.layer)
                    return In(inputs.index(known.layer))
                if isinstance(known, _Several | _Expanded):
                    raise ModelError(f"{value.name} is used as one tensor but is several")
                return known
            case list() | tuple():
                return tuple(self._argument(item, inputs) for item in value)
            case torch.dtype():
                return Symbol("dtype", str(value).removeprefix("torch."))
            case torch.layout():
                return Symbol("layout", str(value).removeprefix("torch."))
            case torch.memory_format():
                return Symbol("memory_format", str(value).removeprefix("torch."))
            case torch.device():
                return Symbol("device", "cpu")
            case None | bool() | int() | float() | complex() | str():
                return value
            case _:
                raise ModelError(
                    f"an operator of the exported program has an argument of type "
                    f"{type(value).__name__}, which cannot be sent to other ranks"
                )

    def _fold(self, node: torch.fx.Node, call: torch.fx.Node, select: int | None) -> Weight:
        """Compute what does not depend on the request's values."""
        function: Any = call.target

        def concrete(value: torch.fx.Node) -> Any:
            known = self._values[value]
            if isinstance(known, _Tensor):  # only its shape and type matter
                like = value.meta["val"]
                return torch.empty(like.shape, dtype=like.dtype)
            return self._graph.weights[known.name] if isinstance(known, Weight) else known

        args, kwargs = torch.fx.node.map_arg((call.args, call.kwargs), concrete)
        with torch.no_grad():
            result = function(*args, **kwargs)
        name = self._name(node)
        self._graph.weights[name] = (result if select is None else result[select]).clone()
        return Weight(name)

    def _outputs(self, node: torch.fx.Node) -> None:
        (results,) = node.args
        assert isinstance(results, Sequence)
        count = 0
        for result in results:
            value = self._values[result] if isinstance(result, torch.fx.Node) else result
            if isinstance(value, Weight):
                value = self._constant_layer(value)
            if not isinstance(value, _Tensor):
                continue
            spec = self._graph.drafts[value.layer].out
            self._add(Draft(f"output{count}", "output", [value.layer], [], spec, spec.rows, False))
            count += 1

    def _constant_layer(self, weight: Weight) -> _Tensor:
        """An answer that does not depend on the request still has to be computed somewhere."""
        spec = spec_of(self._graph.weights[weight.name])
        name = f"constant_{len(self._graph.drafts)}"
        step = Step("aten.clone.default", (("self", weight), ("memory_format", None)), spec)
        self._add(Draft(name, "compute", [], [step], spec, 1, divisible=True))
        return _Tensor(name)


def _spec(node: torch.fx.Node, value: torch.Tensor) -> TensorSpec:
    shape = tuple(value.shape)
    if not all(isinstance(size, int) for size in shape):
        raise ModelError(
            f"{node.name} has a shape that is not fixed ({shape}): export the model with "
            "static shapes"
        )
    spec = TensorSpec(tuple(int(s) for s in shape), str(value.dtype).removeprefix("torch."), None)
    if spec.dtype not in DTYPE_BYTES:
        raise ModelError(f"{node.name} has element type {spec.dtype}, which cannot be divided")
    return spec


def _refuse_chance(call: torch.fx.Node, args: Mapping[str, Arg]) -> None:
    """Raise ModelError for an operator whose answer is random as it is called here."""
    function: Any = call.target
    if torch.Tag.nondeterministic_seeded not in function.tags:
        return
    switches = [args[name] for name in ("train", "training", "dropout_p") if name in args]
    if not switches or any(switches):
        raise ModelError(
            f"operator {function} ({call.name}) is random, so its answer cannot be reproduced: "
            "export the model in eval mode and without noise"
        )


def _as_slice(step: Step, shapes: Sequence[Sequence[int]]) -> Step:
    """A piece of a split tensor as a slice of it, so that it moves no more than itself.

    ``shapes`` are those of all pieces.
    """
    _, name, _ = step.target.split(".")
    if name not in _SPLITS or step.select is None:
        return step
    args = dict(step.args)
    dim = args["dim"]
    assert isinstance(dim, int)
    start = sum(shape[dim] for shape in shapes[: step.select])
    stop = start + shapes[step.select][dim]
    bound = (("self", args["self"]), ("dim", dim), ("start", start), ("end", stop), ("step", 1))
    return Step("aten.slice.Tensor", bound, step.out)
