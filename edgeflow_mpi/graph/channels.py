"""Output channels as what is divided: which channels of its operands a step needs for some.

Channels are dimension 1 of a result. A convolution without groups and a linear layer need
their operand whole for any of their channels, and of their weights only those channels'. Most
other operators work channel by channel. The weights that a rank needs are named by
:class:`Part`.

Bounds of channels are arrays here, so that the same arithmetic serves one span and the table of
all single channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.pointwise import ChannelWise, Elementwise, Reduction
from edgeflow_mpi.graph.types import In, Layer, Ref, TensorSpec
from edgeflow_mpi.spans import EMPTY, Span

CHANNELS = 1
"""The dimension of channels."""

Bounds = np.ndarray[tuple[int], np.dtype[np.int64]]
Range = tuple[Bounds, Bounds]

_CONVOLUTIONS = {f"aten.conv{n}d.{kind}": n for n in (1, 2, 3) for kind in ("default", "padding")}
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool")
RESHAPES = (
    "aten.reshape.default", "aten.flatten.using_ints", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.unsqueeze.default",
)  # fmt: skip
"""Where they keep dimensions 0 and 1, what is behind these is written in another shape."""
LINEAR = "aten.linear.default"


@dataclass(frozen=True)
class Part:
    """Some places of a weight along one dimension: what a rank needs of it.

    The weight ``name`` is seen in ``shape``; ``span`` lies along dimension ``dim`` of that. With
    ``last`` its dimensions from 1 on are put into the order (2, 3, ..., 1) and flattened, so
    that a row of the weight lies like the channels-last map that it is multiplied with.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    span: Span
    last: bool = False

    @property
    def key(self) -> str:
        """A name of its own, for the piece as a weight."""
        return f"{self.name}[{'/'.join(map(str, self.shape))}, {self.dim}, {self.span}]"

    def spec(self, whole: TensorSpec) -> TensorSpec:
        """What the piece is, the weight being ``whole``."""
        shape = [*self.shape]
        shape[self.dim] = self.span.rows
        if self.last:
            shape = [shape[0], math.prod(shape[1:])]
        return TensorSpec(tuple(shape), whole.dtype, None)


@dataclass(frozen=True)
class Want:
    """What is wanted of a value: all of it, or ranges of channels, or nothing."""

    whole: bool = False
    some: Range | None = None

    @property
    def anything(self) -> bool:
        return self.whole or self.some is not None

    def and_also(self, need: Range | None) -> Want:
        """With a range of channels besides, or, for None, with all of it."""
        if need is None or self.whole:
            return Want(whole=True)
        if self.some is None:
            return Want(some=need)
        low, high = self.some
        return Want(some=(np.minimum(low, need[0]), np.maximum(high, need[1])))

    def span(self) -> Span:
        """The range of a want for one span."""
        return EMPTY if self.some is None else Span.of(int(self.some[0][0]), int(self.some[1][0]))


@dataclass(frozen=True)
class Wants:
    """What channels of a layer's result ask of its steps and of its inputs."""

    steps: tuple[Want, ...]
    inputs: tuple[Want, ...]


def trace_channels(layer: Layer, calls: Sequence[Call], low: Bounds, high: Bounds) -> Wants:
    """Follow channels ``[low[k], high[k])`` of the layer, none empty, back to its inputs."""
    steps = [Want() for _ in calls]
    inputs = [Want() for _ in layer.inputs]

    def want(ref: Ref, need: Range | None) -> None:
        where, index = (inputs, ref.index) if isinstance(ref, In) else (steps, ref.step)
        where[index] = where[index].and_also(need)

    steps[-1] = Want(some=(low, high))
    for j in range(len(calls) - 1, -1, -1):
        call, made = calls[j], steps[j]
        if not made.anything:
            continue
        needs: Sequence[Range | None] = [None] * len(call.operands)
        if made.some is not None:
            needs = [_operand_range(call, spec, made.some) for spec in call.operands]
        for ref, need in zip(call.step.refs, needs, strict=True):
            want(ref, need)
    return Wants(tuple(steps), tuple(inputs))


def by_channels(layer: Layer, calls: Sequence[Call]) -> bool:
    """Whether output channels of the layer can be computed by themselves."""
    if layer.kind != "compute" or not calls:
        return False
    shape = layer.steps[-1].out.shape
    if len(shape) < 2 or shape[CHANNELS] < 2 or not _fits(calls[-1]):
        return False
    everything = np.array([0]), np.array([shape[CHANNELS]])
    try:
        wants = trace_channels(layer, calls, *everything)
    except _Unfit:
        return False
    return all(want.some is None or _fits(c) for c, want in zip(calls, wants.steps, strict=True))


class _Unfit(Exception):
    """A step of which single channels cannot be computed."""


def grouping(call: Call) -> tuple[int, int, int]:
    """(groups, input channels and output channels of one group) of a convolution."""
    groups = call.integer("groups")
    return groups, call.operands[0].shape[CHANNELS] // groups, call.out.shape[CHANNELS] // groups


def is_convolution(call: Call) -> bool:
    return call.step.target in _CONVOLUTIONS


def place_of(call: Call, spec: TensorSpec) -> int | None:
    """The dimension of a call's operand or weight that has the result's channels, if one has."""
    if not isinstance(rule_for(call.step.target), Elementwise):
        return CHANNELS
    place = CHANNELS - (len(call.out.shape) - len(spec.shape))
    if place < 0 or spec.shape[place] != call.out.shape[CHANNELS]:
        return None  # it is broadcast
    return place


def weight_places(call: Call) -> Mapping[str, int]:
    """Weight -> the dimension of it that has the result's channels; others are needed whole."""
    if is_convolution(call) or call.step.target == LINEAR:
        return dict.fromkeys(call.step.weights, 0)
    if isinstance(rule_for(call.step.target), ChannelWise):
        channels = call.out.shape[CHANNELS]
        return {name: 0 for name in call.step.weights if call.weights[name].shape == (channels,)}
    places = {name: place_of(call, call.weights[name]) for name in call.step.weights}
    return {name: place for name, place in places.items() if place is not None}


def _operand_range(call: Call, spec: TensorSpec, made: Range) -> Range | None:
    """Channels of an operand for channels of the result; None for all of the operand."""
    if not _fits(call):
        raise _Unfit
    if call.step.target == LINEAR:
        return None
    if is_convolution(call):
        groups, read, each = grouping(call)
        if groups == 1:
            return None
        return made[0] // each * read, -(-made[1] // each) * read
    return made if place_of(call, spec) is not None else None


def _fits(call: Call) -> bool:
    """Whether single channels of the result can be computed."""
    target, shape = call.step.target, call.out.shape
    if len(shape) < 2:
        return False
    if is_convolution(call):
        given = call.weight("weight") is not None and len(call.operands) == 1
        return given and len(shape) == _CONVOLUTIONS[target] + 2
    if target == LINEAR:
        given = call.weight("weight") is not None and len(call.operands) == 1
        return given and len(shape) == len(call.operands[0].shape) == 2
    rule = rule_for(target)
    if isinstance(rule, Elementwise):
        return True
    if len(call.operands) != 1 or call.step.select not in (None, 0):
        return False
    before = call.operands[0].shape
    if before[:2] != shape[:2]:
        return False
    if isinstance(rule, Reduction):
        return not {0, CHANNELS} & rule.reduced(call)
    if isinstance(rule, ChannelWise):
        return not call.args.get("training")
    name = target.split(".")[1]
    if name.startswith(_POOLS):
        return len(before) == len(shape) and f"{len(shape) - 2}d" in name
    return target in RESHAPES
