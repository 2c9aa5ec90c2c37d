"""The layer DAG: frozen values that every later stage reads and none changes.

A *layer* produces exactly one tensor, by a short straight-line program of ATen calls (its
*steps*: an operator and the pointwise operators fused behind it). An *edge* is a pair
(producer layer, consumer layer). Weights are named here and travel apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

DTYPE_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "complex64": 8, "complex128": 16,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Shape, element type and split axis of a whole (undivided) tensor.

    ``axis`` is the dimension along which the tensor may be divided among ranks, or None
    for one that always travels whole. It must be a dimension of ``shape``. ``wire`` is the
    element type in which it travels, where that is not ``dtype``. ``order`` is the order of
    dimensions in memory where it is not the usual one (:attr:`memory_order`).
    """

    shape: tuple[int, ...]
    dtype: str
    axis: int | None
    wire: str | None = None
    order: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Extent along the split axis; 1 for a tensor that is never divided."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor in memory."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it travels (of all of it where there is no split axis)."""
        elements = math.prod(self.shape) // max(self.rows, 1)
        return elements * DTYPE_BYTES[self.wire or self.dtype]

    @property
    def memory_order(self) -> tuple[int, ...]:
        """Dimensions from outermost to innermost: channels last for maps divided by rows."""
        ndim = len(self.shape)
        if self.order is not None:
            return self.order
        return (0, *range(2, ndim), 1) if ndim in (4, 5) and self.axis == 2 else tuple(range(ndim))

    def shape_of(self, rows: int) -> tuple[int, ...]:
        """Shape of a piece that holds ``rows`` rows."""
        if self.axis is None:
            return self.shape
        return (*self.shape[: self.axis], rows, *self.shape[self.axis + 1 :])


@dataclass(frozen=True)
class In:
    """Operand: the layer's ``index``-th input tensor."""

    index: int


@dataclass(frozen=True)
class Var:
    """Operand: the result of the layer's step number ``step``."""

    step: int


@dataclass(frozen=True)
class Weight:
    """Operand: a constant tensor, by name."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A non-tensor torch constant, such as ``dtype float32``: ``kind`` and ``name``."""

    kind: Literal["dtype", "layout", "device", "memory_format"]
    name: str


Ref: TypeAlias = In | Var
Portion: TypeAlias = Literal["all", "outputs", "inputs", "rest"]
Divided: TypeAlias = Literal["rows", "outputs", "inputs", "whole"]
Arg: TypeAlias = (
    In | Var | Weight | Symbol | bool | int | float | complex | str | tuple["Arg", ...] | None
)


@dataclass(frozen=True)
class Step:
    """One ATen call: ``target`` such as ``aten.conv2d.default``, arguments bound by name.

    ``select`` picks one result of an operator that returns several. ``out`` describes the
    whole result; its axis is None where the result cannot be computed by rows.
    """

    target: str
    args: tuple[tuple[str, Arg], ...]
    out: TensorSpec
    select: int | None = None

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Every operand that is a layer input or an earlier result, in argument order."""
        return tuple(arg for arg in self._leaves() if isinstance(arg, In | Var))

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(arg.name for arg in self._leaves() if isinstance(arg, Weight))

    def _leaves(self) -> Iterator[Arg]:
        stack: list[Arg] = [arg for _, arg in reversed(self.args)]
        while stack:
            arg = stack.pop()
            if isinstance(arg, tuple):
                stack.extend(reversed(arg))
            else:
                yield arg


@dataclass(frozen=True)
class Layer:
    """One node of the DAG. It produces one tensor, ``out``.

    ``rows`` is the extent of what is divided: the rows of ``out``, or, for a layer whose
    ranks each produce a summand of ``out`` (``combine`` is not None), the rows of its
    first input. A layer that is not ``divisible`` must be computed whole wherever it is
    computed. ``inputs`` names the producing layers, each once. An ``input`` layer stands
    for a request tensor, an ``output`` layer for an answer tensor; both live on rank 0
    and have no steps. A ``relay`` layer hands its input on unchanged; it lives on rank 0
    and costs nothing (:mod:`edgeflow_mpi.graph.relays`).

    ``divided`` says what the rows are. ``rows``: those of the map, as capture found them;
    every rank needs all weights. ``outputs``: output channels, each with its own part of the
    weights. ``inputs``: rows or channels of the input, which every rank multiplies by the
    part of the weights that belongs to them, for a summand. ``whole``: not divided, as it
    reads something that is divided by channels (:mod:`edgeflow_mpi.graph.division`). The
    steps are those of the undivided layer in any case.
    """

    name: str
    kind: Literal["input", "compute", "relay", "output"]
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    out: TensorSpec
    rows: int
    divisible: bool
    combine: Literal["sum", "max"] | None = None
    macs: int = 0
    divided: Divided = "rows"

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights it needs, each once, in order of use."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.weights))

    @property
    def native(self) -> TensorSpec:
        """``out`` as it is where the layer is divided by rows."""
        return self.out if self.divided == "rows" or not self.steps else self.steps[-1].out

    @property
    def pinned(self) -> bool:
        """Whether it must be on rank 0."""
        return self.kind != "compute"

    @property
    def splits(self) -> bool:
        """Whether a plan may give its rows to more than one owner."""
        return self.divisible and self.rows > 1

    @property
    def sends_early(self) -> bool:
        """Whether rows that others wait for may be computed before the rest.

        Everybody waits for all summands, and for all channels, some of which take kernels hardly
        less time than many.
        """
        return self.splits and self.combine is None and self.divided == "rows"


@dataclass(frozen=True)
class Origin:
    """Of which layer of the model's own graph a layer was made, and what of it it does.

    ``part`` is ``all``: the whole layer; ``outputs`` or ``inputs``: the same work, divided in
    that way; ``rest``: what remains when its product is done (adding up summands, a bias).
    """

    signature: str
    rows: int
    part: Portion = "all"

    @property
    def derived(self) -> str:
        """The signature of what was made."""
        if self.part == "all":
            return self.signature
        return hashlib.sha256(f"{self.signature} {self.part}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Graph:
    """Layers in level order (a topological order), with named request and answer tensors.

    ``weights`` maps a name to the spec of its tensor. ``nodes`` of the exported program
    that a layer ends with carry the layer's name, so values can be compared by name.
    ``origins`` are of layers that were made of another graph's.
    """

    name: str
    layers: tuple[Layer, ...]
    weights: tuple[tuple[str, TensorSpec], ...]
    output_names: tuple[str, ...]
    origins: tuple[tuple[str, Origin], ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def weight_specs(self) -> Mapping[str, TensorSpec]:
        return dict(self.weights)

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Layer name -> the layers that read its tensor, in layer order."""
        found: dict[str, list[str]] = {layer.name: [] for layer in self.layers}
        for layer in self.layers:
            for producer in layer.inputs:
                found[producer].append(layer.name)
        return {name: tuple(names) for name, names in found.items()}

    @property
    def inputs(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == "input")

    @property
    def outputs(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == "output")

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any layer, shape or edge, not with weights."""
        text = repr((self.layers, self.weights, self.output_names))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def input_specs(self, layer: Layer) -> tuple[TensorSpec, ...]:
        return tuple(self.by_name[name].out for name in layer.inputs)

    @cached_property
    def signatures(self) -> Mapping[str, str]:
        """Layer name -> key that layers with identical shapes and operators share."""
        return {
            layer.name: self.origin[layer.name].derived
            if layer.name in self.origin
            else self._signature(layer)
            for layer in self.layers
        }

    @cached_property
    def origin(self) -> Mapping[str, Origin]:
        return dict(self.origins)

    def _signature(self, layer: Layer) -> str:
        shapes = {name: (spec.shape, spec.dtype) for name, spec in self.weights}
        steps = [
            (step.target, tuple((key, _anonymous(arg, shapes)) for key, arg in step.args),
             step.out, step.select)
            for step in layer.steps
        ]  # fmt: skip
        text = repr((layer.kind, steps, self.input_specs(layer), layer.rows, layer.combine))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _anonymous(arg: Arg, shapes: Mapping[str, object]) -> object:
    """The argument with every weight's name replaced by its shape."""
    if isinstance(arg, Weight):
        return ("weight", shapes[arg.name])
    if isinstance(arg, tuple):
        return tuple(_anonymous(item, shapes) for item in arg)
    return arg
