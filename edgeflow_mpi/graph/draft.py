"""A graph under construction: what capture makes and the fusion passes rewrite.

Drafts are the only mutable things of the graph package; :func:`freeze` turns them into the
frozen :class:`Graph` that every later stage sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from edgeflow_mpi.graph.rules import Call
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, TensorSpec, Var, Weight


@dataclass
class Draft:
    """One future layer; fields as in :class:`Layer`."""

    name: str
    kind: Literal["input", "compute", "output"]
    inputs: list[str]
    steps: list[Step]
    out: TensorSpec
    rows: int
    divisible: bool
    combine: Literal["sum", "max"] | None = None


@dataclass
class DraftGraph:
    """Drafts by name, in a topological order, and the constant tensors they name."""

    drafts: dict[str, Draft] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def consumers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in self.drafts}
        for draft in self.drafts.values():
            for producer in draft.inputs:
                found[producer].append(draft.name)
        return found

    def call(self, draft: Draft, index: int) -> Call:
        """Step ``index`` of ``draft`` with the specs of its operands."""
        step = draft.steps[index]
        operands = tuple(
            self.drafts[draft.inputs[ref.index]].out
            if isinstance(ref, In)
            else draft.steps[ref.step].out
            for ref in step.refs
        )
        return Call(step, operands, {name: spec_of(self.weights[name]) for name in step.weights})


def spec_of(tensor: torch.Tensor, axis: int | None = None) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), axis)


def leaves(arg: Arg) -> Iterator[Arg]:
    """Every part of an argument that is not itself a tuple."""
    if isinstance(arg, tuple):
        for item in arg:
            yield from leaves(item)
    else:
        yield arg


def renumber(arg: Arg, inputs: Mapping[int, Arg], variables: Mapping[int, Arg]) -> Arg:
    """The argument with every operand replaced as the two mappings say."""
    match arg:
        case In(index):
            return inputs[index]
        case Var(step):
            return variables[step]
        case tuple():
            return tuple(renumber(item, inputs, variables) for item in arg)
        case _:
            return arg


def macs(call: Call) -> int:
    """Multiply-adds of one whole call; 0 for what is not a product of tensors."""
    name = call.step.target.split(".")[1]
    made = math.prod(call.out.shape)
    if name.startswith("conv_transpose"):
        weight = call.weight("weight")
        read = math.prod(call.operands[0].shape)
        return read * math.prod(weight.shape[1:]) if weight else 0
    if name.startswith("conv") or name == "linear":
        weight = call.weight("weight")
        return made * math.prod(weight.shape[1:]) if weight else 0
    if name in ("matmul", "mm", "bmm", "addmm", "baddbmm") and call.operands:
        first = call.operands[-1] if name in ("addmm", "baddbmm") else call.operands[0]
        return made * first.shape[-1]
    if name == "scaled_dot_product_attention":
        query, key, value = call.operands[:3]
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        return scores * (query.shape[-1] + value.shape[-1])
    return 0


def freeze(graph: DraftGraph, name: str, output_names: Sequence[str]) -> Graph:
    """The frozen graph: layers in level order, only the weights that are used.

    Output layers come last, in the model's order, which is that of the answer's tensors.
    """
    # Level order rather than depth first: units of parallel branches alternate, so one
    # branch computes while the other's halo rows travel.
    level: dict[str, int] = {}
    for draft in graph.drafts.values():
        level[draft.name] = 1 + max((level[producer] for producer in draft.inputs), default=-1)
    ordered = sorted(graph.drafts.values(), key=lambda draft: level[draft.name])
    layers: list[Layer] = []
    used: dict[str, TensorSpec] = {}
    outputs = [draft for draft in graph.drafts.values() if draft.kind == "output"]
    for draft in [*(draft for draft in ordered if draft.kind != "output"), *outputs]:
        layers.append(_layer(graph, draft))
        for weight in layers[-1].weights:
            used[weight] = spec_of(graph.weights[weight])
    return Graph(name, tuple(layers), tuple(used.items()), tuple(output_names))


def _layer(graph: DraftGraph, draft: Draft) -> Layer:
    return Layer(
        draft.name,
        draft.kind,
        tuple(draft.inputs),
        tuple(draft.steps),
        draft.out,
        draft.rows,
        draft.divisible,
        draft.combine,
        sum(macs(graph.call(draft, i)) for i in range(len(draft.steps))),
    )


__all__ = [
    "Draft", "DraftGraph", "Weight", "freeze", "leaves", "macs", "renumber", "spec_of",
]  # fmt: skip
