"""What one rank computes of a layer that is not divided by rows, as an ordinary layer.

Some output channels of a convolution are a convolution with fewer output channels; a summand
of a linear layer is a linear layer with fewer inputs. So that is what a kernel is prepared
for: whoever computes layers need not know that there are other ways to divide them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from edgeflow_mpi.graph.channels import (
    CHANNELS,
    LINEAR,
    RESHAPES,
    Part,
    Want,
    grouping,
    is_convolution,
    place_of,
    trace_channels,
    weight_places,
)
from edgeflow_mpi.graph.draft import renumber
from edgeflow_mpi.graph.needs import calls, native_calls
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Ref, Step, TensorSpec, Var, Weight
from edgeflow_mpi.spans import Span


@dataclass(frozen=True)
class Local:
    """One rank's share of a layer.

    ``layer`` is to be computed whole. Its inputs have the names and the order of the divided
    layer's and are, in ``graph``, exactly the rows or channels that the share needs of them.
    ``parts`` are the weights of which it has pieces, under the names that ``graph`` gives them.
    """

    graph: Graph
    layer: Layer
    parts: Mapping[str, Part]

    @property
    def rows(self) -> Span:
        """All rows of ``layer``."""
        return Span(0, self.layer.rows)


def share_of(graph: Graph, layer: Layer, rows: Span) -> Local:
    """What computes non-empty ``rows`` of a layer that is not divided by rows."""
    if layer.divided == "outputs":
        return _outputs(graph, layer, rows)
    if layer.divided == "inputs":
        return _inputs(graph, layer, rows)
    assert layer.divided == "whole"
    inputs = [graph.by_name[name].native for name in layer.inputs]
    return _local(graph, layer, inputs, layer.steps, {})


def weight_keys(graph: Graph, layer: Layer, rows: Span) -> Mapping[str, Part | None]:
    """Every weight that ``rows`` of a layer need, by its name, or by its key if in part."""
    if layer.divided == "rows":
        return dict.fromkeys(layer.weights)
    share = share_of(graph, layer, rows)
    return {name: share.parts.get(name) for name in share.layer.weights}


def part_spec(graph: Graph, name: str, part: Part | None) -> TensorSpec:
    """What is behind a name or key of :func:`weight_keys`."""
    return graph.weight_specs[name] if part is None else part.spec(graph.weight_specs[part.name])


def piece_of(part: Part, weight: torch.Tensor) -> torch.Tensor:
    """The piece of a whole weight; it shares its memory where the piece lies in one run."""
    piece = weight.reshape(part.shape).narrow(part.dim, part.span.start, part.span.rows)
    if part.last:
        order = (0, *range(2, piece.dim()), 1)
        piece = piece.permute(order).reshape(piece.shape[0], -1)
    return piece.contiguous()


def local_weights(share: Local, weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The weights of a share: as they are, or cut out of whole ones."""
    return {
        name: piece_of(share.parts[name], weights[share.parts[name].name])
        if name not in weights
        else weights[name]
        for name in share.layer.weights
    }


def _local(
    graph: Graph,
    layer: Layer,
    inputs: list[TensorSpec],
    steps: tuple[Step, ...],
    parts: Mapping[str, Part],
) -> Local:
    """The share with these inputs and steps."""
    sources = tuple(
        Layer(name, "input", (), (), spec, spec.rows, divisible=False)
        for name, spec in zip(layer.inputs, inputs, strict=True)
    )
    out = steps[-1].out
    made = replace(
        layer, steps=steps, out=out, rows=out.rows, divisible=False, combine=None, divided="rows"
    )
    specs = {name: graph.weight_specs[name] for name in made.weights if name not in parts}
    specs |= {name: part.spec(graph.weight_specs[part.name]) for name, part in parts.items()}
    local = Graph(graph.name, (*sources, made), tuple(specs.items()), ())
    if all(_by_rows(call) for call in calls(local, made)):
        # It will be computed whole, but then its steps may say so in terms of rows.
        made = replace(made, divisible=True)
        local = replace(local, layers=(*sources, made))
    return Local(local, made, parts)


def _by_rows(call: Call) -> bool:
    rule = rule_for(call.step.target)
    return call.out.axis is None or (rule is not None and rule.axis(call) == call.out.axis)


def _inputs(graph: Graph, layer: Layer, rows: Span) -> Local:
    """The product of the inputs ``rows`` and the part of the weight that belongs to them."""
    producer = graph.by_name[layer.inputs[0]]
    spec = producer.native
    dim = producer.out.axis
    assert dim is not None and len(layer.steps) == 1
    held = replace(spec, shape=producer.out.shape_of(rows.rows), axis=None, wire=None)
    # As it lies in memory, which a single row does not tell.
    held = replace(held, order=producer.out.memory_order)
    step = layer.steps[0]
    args = dict(step.args)
    weight = args["weight"]
    assert isinstance(weight, Weight)
    shape = (graph.weight_specs[weight.name].shape[0], *producer.out.shape[1:])
    last = len(shape) > 2
    part = Part(weight.name, shape, dim, rows, last)
    flat: Ref = In(0)
    steps: list[Step] = []
    if last:
        order = (0, *range(2, len(shape)), 1)
        turned = replace(held, shape=tuple(held.shape[d] for d in order), order=None)
        steps.append(Step("aten.permute.default", (("self", In(0)), ("dims", order)), turned))
        row = replace(turned, shape=(spec.shape[0], int(np.prod(turned.shape[1:]))))
        steps.append(Step("aten.reshape.default", (("self", Var(0)), ("shape", row.shape)), row))
        flat = Var(1)
    args |= {"input": flat, "weight": Weight(part.key)}
    steps.append(replace(step, args=tuple(args.items())))
    return _local(graph, layer, [held], tuple(steps), {part.key: part})


def _outputs(graph: Graph, layer: Layer, rows: Span) -> Local:
    """The layer with no other output channels than ``rows``."""
    return _Outputs(graph, layer, rows).local()


@dataclass(frozen=True)
class _Value:
    """A value of the share: where it is, what it is, and of which channels (None: all)."""

    ref: Ref
    spec: TensorSpec
    channels: Span | None


@dataclass
class _Outputs:
    """Writes the steps of a share, front to back."""

    graph: Graph
    layer: Layer
    rows: Span
    steps: list[Step] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    slices: dict[tuple[Ref, Span, int], Ref] = field(default_factory=dict)

    def local(self) -> Local:
        bounds = np.array([self.rows.start]), np.array([self.rows.stop])
        # As in the undivided layer: inputs by rows, or in whatever way they are there.
        made_of = native_calls(self.graph, self.layer)
        wants = trace_channels(self.layer, made_of, *bounds)
        values: dict[Ref, _Value] = {}
        specs: list[TensorSpec] = []
        for k, (name, want) in enumerate(zip(self.layer.inputs, wants.inputs, strict=True)):
            producer, channels = self.graph.by_name[name], None
            spec = producer.native
            if producer.divided == "outputs" and not want.whole:
                channels = want.span()
                spec = _with_channels(spec, channels.rows)
            specs.append(spec)
            values[In(k)] = _Value(In(k), spec, channels)
        # Inputs are cut first, so that nothing stands between steps that are one computation.
        scout = replace(self, steps=[], parts={}, slices={})
        scout._write(made_of, wants.steps, dict(values))
        for ref, channels, place in scout.slices:
            if isinstance(ref, In):
                self._cut(values[ref], channels, place)
        self._write(made_of, wants.steps, values)
        last = values[Var(len(made_of) - 1)]
        assert last.ref == Var(len(self.steps) - 1) and last.channels == self.rows
        return _local(self.graph, self.layer, specs, tuple(self.steps), self.parts)

    def _write(
        self, made_of: Sequence[Call], wants: Sequence[Want], values: dict[Ref, _Value]
    ) -> None:
        """All steps of which something is wanted; their values join ``values``."""
        for j, (call, want) in enumerate(zip(made_of, wants, strict=True)):
            if want.anything:
                values[Var(j)] = self._made(call, want, values)

    def _made(self, call: Call, want: Want, values: Mapping[Ref, _Value]) -> _Value:
        """One step, for what is wanted of it."""
        if want.whole:
            mapping = {ref: self._cut(values[ref], None) for ref in call.step.refs}
            return self._add(_with_operands(call.step, mapping), call.step.out, None)
        channels = want.span()
        spec = _with_channels(call.step.out, channels.rows)
        if is_convolution(call):
            return self._convolution(call, channels, values[call.step.refs[0]])
        if call.step.target in RESHAPES:
            source = self._cut(values[call.step.refs[0]], channels)
            args: tuple[tuple[str, Arg], ...] = (("self", source), ("shape", spec.shape))
            return self._add(Step("aten.reshape.default", args, spec), spec, channels)
        mapping = {}
        for ref, operand in zip(call.step.refs, call.operands, strict=True):
            place = None if call.step.target == LINEAR else place_of(call, operand)
            wanted = (None, CHANNELS) if place is None else (channels, place)
            mapping[ref] = self._cut(values[ref], *wanted)
        step = _with_operands(call.step, mapping)
        return self._add(self._with_parts(step, call, channels), spec, channels)

    def _convolution(self, call: Call, channels: Span, source: _Value) -> _Value:
        """A convolution; channels of several groups are computed group by group at the ends."""
        groups, read, each = grouping(call)
        made = []
        for piece in _by_groups(channels, each) if groups > 1 else (channels,):
            first, behind = piece.start // each, -(-piece.stop // each)
            needed = Span(first * read, behind * read) if groups > 1 else None
            mapping = {call.step.refs[0]: self._cut(source, needed)}
            step = self._with_parts(_with_operands(call.step, mapping), call, piece)
            args = {**dict(step.args), "groups": behind - first if groups > 1 else 1}
            spec = _with_channels(call.step.out, piece.rows)
            step = Step(step.target, tuple(args.items()), spec)
            made.append(self._add(step, spec, piece))
        if len(made) == 1:
            return made[0]
        spec = _with_channels(call.step.out, channels.rows)
        joined: tuple[Arg, ...] = tuple(value.ref for value in made)
        args_of_cat: tuple[tuple[str, Arg], ...] = (("tensors", joined), ("dim", CHANNELS))
        return self._add(Step("aten.cat.default", args_of_cat, spec), spec, channels)

    def _with_parts(self, step: Step, call: Call, channels: Span) -> Step:
        """The step with the weights of these channels alone."""
        keys: dict[str, str] = {}
        for name, place in weight_places(call).items():
            part = Part(name, call.weights[name].shape, place, channels)
            self.parts[part.key] = part
            keys[name] = part.key
        args = tuple((key, _renamed(arg, keys)) for key, arg in step.args)
        return replace(step, args=args)

    def _cut(self, value: _Value, channels: Span | None, place: int = CHANNELS) -> Ref:
        """Channels of a value, or all of it."""
        have = Span(0, value.spec.shape[place]) if value.channels is None else value.channels
        if channels is None or channels == have:
            assert channels is not None or value.channels is None
            return value.ref
        known = value.ref, channels, place
        if known not in self.slices:
            spec = _with_channels(value.spec, channels.rows, place)
            start = channels.start - have.start
            args: tuple[tuple[str, Arg], ...] = (
                ("self", value.ref), ("dim", place), ("start", start),
                ("end", start + channels.rows), ("step", 1),
            )  # fmt: skip
            self.slices[known] = self._add(Step("aten.slice.Tensor", args, spec), spec, None).ref
        return self.slices[known]

    def _add(self, step: Step, spec: TensorSpec, channels: Span | None) -> _Value:
        self.steps.append(replace(step, out=spec))
        return _Value(Var(len(self.steps) - 1), spec, channels)


def _by_groups(channels: Span, each: int) -> tuple[Span, ...]:
    """The span in pieces of which each is some whole groups, or part of one."""
    first = -(-channels.start // each) * each
    last = channels.stop // each * each
    ends = {channels.start, min(first, channels.stop), max(last, channels.start), channels.stop}
    return tuple(Span(a, b) for a, b in pairwise(sorted(ends)))


def _with_channels(spec: TensorSpec, channels: int, place: int = CHANNELS) -> TensorSpec:
    shape = (*spec.shape[:place], channels, *spec.shape[place + 1 :])
    return replace(spec, shape=shape)


def _with_operands(step: Step, mapping: Mapping[Ref, Ref]) -> Step:
    inputs: dict[int, Arg] = {ref.index: to for ref, to in mapping.items() if isinstance(ref, In)}
    made: dict[int, Arg] = {ref.step: to for ref, to in mapping.items() if isinstance(ref, Var)}
    args = tuple((key, renumber(arg, inputs, made)) for key, arg in step.args)
    return replace(step, args=args)


def _renamed(arg: Arg, keys: Mapping[str, str]) -> Arg:
    if isinstance(arg, Weight):
        return Weight(keys.get(arg.name, arg.name))
    if isinstance(arg, tuple):
        return tuple(_renamed(item, keys) for item in arg)
    return arg
