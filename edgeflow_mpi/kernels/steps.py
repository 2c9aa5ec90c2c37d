"""A layer's steps become one callable: ATen calls, and what an engine can do at once.

The steps' row rules are bound once: spans, padding and weights are resolved here, so that
what runs per request is a short list of calls. Operators whose result nobody else reads
are done in place. An engine that is good at some operators, such as convolutions with what
follows them, gives a :data:`Fuse` and leaves the rest of the layer to ATen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from edgeflow_mpi.graph.needs import Needs, calls, trace
from edgeflow_mpi.graph.rules import Call, Rule, rule_for
from edgeflow_mpi.graph.rules.base import Compute, invoke
from edgeflow_mpi.graph.rules.pointwise import Elementwise
from edgeflow_mpi.graph.types import Graph, In, Layer, Ref, Step
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor

_IN_PLACE: Mapping[str, str] = {
    f"aten.{name}.{overload}": f"aten.{name}_.{overload}"
    for name, overload in (
        ("relu", "default"), ("hardswish", "default"), ("hardsigmoid", "default"),
        ("silu", "default"), ("sigmoid", "default"), ("tanh", "default"), ("gelu", "default"),
        ("hardtanh", "default"), ("leaky_relu", "default"), ("elu", "default"),
        ("mish", "default"), ("clamp", "default"), ("clamp_min", "default"),
        ("add", "Tensor"), ("sub", "Tensor"), ("mul", "Tensor"), ("div", "Tensor"),
        ("add", "Scalar"), ("mul", "Scalar"), ("div", "Scalar"),
    )
}  # fmt: skip
_COMMUTES = {"aten.add.Tensor", "aten.mul.Tensor"}
_FRESH = (
    "conv",
    "linear",
    "matmul",
    "max_pool",
    "avg_pool",
    "cat",
    "layer_norm",
    "_native_batch",
    "_to_copy",
)


@dataclass(frozen=True)
class Fused:
    """Several steps as one computation: it makes step ``last`` from ``refs``.

    ``compute`` takes the tensors of ``refs`` and returns the result; ``into``, if there is
    one, takes the tensor to fill first and is used where nothing else needs to be computed.
    """

    compute: Callable[..., Tensor]
    refs: tuple[Ref, ...]
    last: int
    into: Callable[..., object] | None = None


Fuse: TypeAlias = Callable[
    [Sequence[Step], Sequence[Call], int, Span, Mapping[str, Tensor]], Fused | None
]
"""(steps, calls, j, rows, weights) -> step j and some that follow it, if they can be one.

``rows`` are the rows that step j makes; it reads those that its rule asks for.
"""


@dataclass(frozen=True)
class _Bound:
    """One bound step: where its operands are, and which rows of them it reads.

    ``cuts`` are (operand, dimension, first row, rows) where a value holds more rows.
    """

    compute: Compute
    refs: tuple[Ref, ...]
    cuts: tuple[tuple[int, int, int, int], ...]


def assemble(
    engine: str,
    graph: Graph,
    layer: Layer,
    rows: Span,
    weights: Mapping[str, Tensor],
    needs: Needs,
) -> Kernel:
    """The kernel of non-empty ``rows`` of ``layer``, every step by ATen.

    Raises
    ------
    ModelError
        If an operator is not in this build of torch.
    """
    return _assembled(engine, graph, layer, rows, weights, needs, lambda *_: None)[0]


def assemble_fused(
    engine: str,
    graph: Graph,
    layer: Layer,
    rows: Span,
    weights: Mapping[str, Tensor],
    needs: Needs,
    fuse: Fuse,
) -> Kernel | None:
    """The kernel of non-empty ``rows`` of ``layer``, as much as possible by ``fuse``.

    None where ``fuse`` can do nothing of the layer. Raises as :func:`assemble` does.
    """
    kernel, count = _assembled(engine, graph, layer, rows, weights, needs, fuse)
    return kernel if count else None


def _assembled(
    engine: str,
    graph: Graph,
    layer: Layer,
    rows: Span,
    weights: Mapping[str, Tensor],
    needs: Needs,
    fuse: Fuse,
) -> tuple[Kernel, int]:
    """The kernel, and how many of its computations ``fuse`` made."""
    traced = trace(graph, layer, rows)
    # What arrives may be more than this span reads: needs are made monotone over all spans.
    held = needs.of(layer.name, rows)
    bound_calls = calls(graph, layer)
    fresh: set[int] = set()
    program: list[_Bound] = []
    position: dict[int, int] = {}
    into: Callable[..., object] | None = None
    count = j = 0
    while j < len(bound_calls):
        call = bound_calls[j]
        made, operands = traced.steps[j], traced.operands[j]
        fused = fuse(layer.steps, bound_calls, j, made, weights) if _by_rows(layer) else None
        if fused is not None:
            compute, refs, spans, last = fused.compute, fused.refs, list(operands), fused.last
            spans += [traced.steps[last]] * (len(refs) - len(spans))
            into = fused.into
            count += 1
        else:
            spans, last = list(operands), j
            compute, refs, spans = _bind(layer, call, j, made, weights, fresh, spans)
        if fused is not None or _allocates(call):
            fresh.add(last)
        position[last] = len(program)
        cuts = _cuts(graph, layer, traced.steps, held, refs, spans)
        program.append(_Bound(compute, refs, cuts))
        j = last + 1
    run = _joined(program, position)
    alone = len(program) == 1 and run is program[0].compute
    # A producer of summands arrives combined: the kernel then reads one whole tensor.
    name = "+".join(step.target.split(".")[1] for step in layer.steps) or layer.kind
    return Kernel(rows, held, name, run, engine, into if alone else None), count


def _by_rows(layer: Layer) -> bool:
    return layer.combine is None


def _bind(
    layer: Layer,
    call: Call,
    j: int,
    made: Span,
    weights: Mapping[str, Tensor],
    fresh: set[int],
    spans: list[Span],
) -> tuple[Compute, tuple[Ref, ...], list[Span]]:
    """The step's computation, in place where an operand is nobody else's."""
    operand = _overwritable(layer, call, j, fresh)
    if operand is not None:
        if operand == 1:
            call, spans = _swapped(call), spans[::-1]
        step = replace(call.step, target=_IN_PLACE[call.step.target])
        call = replace(call, step=step)
        fresh.add(j)
        rule: Rule | None = Elementwise() if call.out.axis is not None else None
    else:
        rule = rule_for(call.step.target) if call.out.axis is not None else None
    if rule is None or not layer.divisible or layer.combine is not None:
        return invoke(call, weights), call.step.refs, spans
    return rule.bind(call, made, weights), call.step.refs, spans


def _overwritable(layer: Layer, call: Call, j: int, fresh: set[int]) -> int | None:
    """The operand of an elementwise step that may hold its result, if there is one."""
    if call.step.target not in _IN_PLACE:
        return None
    refs = call.step.refs
    first = dict(call.step.args)["self"]
    if refs and refs[0] == first and _mine(layer, j, refs[0], fresh, call):
        return 0
    swaps = call.step.target in _COMMUTES and call.args.get("alpha", 1) == 1
    return 1 if len(refs) == 2 and swaps and _mine(layer, j, refs[1], fresh, call) else None


def _swapped(call: Call) -> Call:
    """A commutative call with its two operands exchanged."""
    args = {**call.args, "self": call.args["other"], "other": call.args["self"]}
    return Call(replace(call.step, args=tuple(args.items())), call.operands[::-1], call.weights)


def _mine(layer: Layer, j: int, ref: Ref, fresh: set[int], call: Call) -> bool:
    """Whether operand ``ref`` of step ``j`` may be overwritten."""
    if isinstance(ref, In) or ref.step not in fresh:
        return False
    readers = sum(step.refs.count(ref) for step in layer.steps)
    spec = layer.steps[ref.step].out
    return readers == 1 and (spec.shape, spec.dtype) == (call.out.shape, call.out.dtype)


def _allocates(call: Call) -> bool:
    """Whether the result is certainly new memory."""
    name = call.step.target.split(".")[1]
    return name.startswith(_FRESH) or call.step.target in _IN_PLACE


def _cuts(
    graph: Graph,
    layer: Layer,
    made: tuple[Span, ...],
    read: tuple[Span, ...],
    refs: tuple[Ref, ...],
    spans: list[Span],
) -> tuple[tuple[int, int, int, int], ...]:
    cuts = []
    inputs = graph.input_specs(layer)
    for place, (ref, span) in enumerate(zip(refs, spans, strict=True)):
        if isinstance(ref, In):
            have, spec = read[ref.index], inputs[ref.index]
        else:
            have, spec = made[ref.step], layer.steps[ref.step].out
        if spec.axis is not None and span != have:
            cuts.append((place, spec.axis, span.start - have.start, span.rows))
    return tuple(cuts)


def _joined(program: list[_Bound], position: Mapping[int, int]) -> Callable[..., Tensor]:
    """One function of the layer's inputs. Plain chains get a shorter loop."""

    def place(ref: Ref) -> tuple[bool, int]:
        return (True, ref.index) if isinstance(ref, In) else (False, position[ref.step])

    plan = [(item.compute, [place(ref) for ref in item.refs], item.cuts) for item in program]
    if len(plan) == 1:
        compute, refs, cuts = plan[0]
        if not cuts and [index for _, index in refs] == list(range(len(refs))):
            return compute
    first, *rest = plan
    chain = all(
        len(refs) == 1 and refs[0] == (False, i) and not cuts
        for i, (_, refs, cuts) in enumerate(rest)
    )
    if chain and first[1] == [(True, 0)] and not first[2]:
        head, tail = first[0], [compute for compute, _, _ in rest]

        def straight(tensor: Tensor) -> Tensor:
            value = head(tensor)
            for compute in tail:
                value = compute(value)
            return value

        return straight

    def run(*inputs: Tensor) -> Tensor:
        values: list[Tensor] = []
        for compute, refs, cuts in plan:
            operands = [inputs[i] if is_input else values[i] for is_input, i in refs]
            for operand, dim, start, length in cuts:
                operands[operand] = operands[operand].narrow(dim, start, length)
            values.append(compute(*operands))
        return values[-1]

    return run
