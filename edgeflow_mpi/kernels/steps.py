"""A layer's steps become one callable: ATen calls, and what an engine can do at once.

The steps' row rules are bound once: spans, padding and weights are resolved here, so that
what runs per request is a short list of calls. Operators whose operand nobody else reads
are done in place, and the last result is made where it is wanted if the operator can do so. An
engine that is good at some operators, such as convolutions with what follows them, gives a
:data:`Fuse` and leaves the rest of the layer to ATen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from edgeflow_mpi.graph.needs import Needs, calls, trace
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.base import Compute, invoke
from edgeflow_mpi.graph.rules.pointwise import Elementwise
from edgeflow_mpi.graph.types import Graph, In, Layer, Ref, Step, Var
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.native import Bind, NativeCall
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
_OUT: Mapping[str, str] = {
    **{
        functional: f"aten.{functional.split('.')[1]}.out"
        for functional in _IN_PLACE
        if functional.endswith((".default", ".Tensor"))
    },
    "aten.cat.default": "aten.cat.out",
}
"""Operators that can make their result in memory that they are given."""
_VIEW = "aten.slice.Tensor"
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
    one, takes the tensor to fill first, and so does ``bind``, which only prepares the call.
    """

    compute: Callable[..., Tensor]
    refs: tuple[Ref, ...]
    last: int
    into: Callable[..., object] | None = None
    bind: Bind | None = None


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
    ``into`` takes the tensor to fill, then the operands; ``overwrites`` says that the result
    is the first operand, ``views`` that it is some of the operand's memory.
    """

    compute: Compute
    refs: tuple[Ref, ...]
    cuts: tuple[tuple[int, int, int, int], ...]
    into: Callable[..., object] | None = None
    overwrites: bool = False
    bind: Bind | None = None
    views: bool = False


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
    count = j = 0
    while j < len(bound_calls):
        call = bound_calls[j]
        made, operands = traced.steps[j], traced.operands[j]
        fused = fuse(layer.steps, bound_calls, j, made, weights) if _by_rows(layer) else None
        if fused is not None:
            refs, last = fused.refs, fused.last
            spans = [*operands, *[traced.steps[last]] * (len(refs) - len(operands))]
            cuts = _cuts(graph, layer, traced.steps, held, refs, spans)
            bound = _Bound(fused.compute, refs, cuts, fused.into, bind=fused.bind)
            fresh.add(last)
            count += 1
        else:
            last = j
            step = _bind(layer, call, j, made, weights, fresh, list(operands))
            cuts = _cuts(graph, layer, traced.steps, held, step.refs, step.spans)
            views = call.step.target == _VIEW
            bound = _Bound(step.compute, step.refs, cuts, step.into, step.overwrites, views=views)
            if step.overwrites or _allocates(call):
                fresh.add(j)
        position[last] = len(program)
        program.append(bound)
        j = last + 1
    # A producer of summands arrives combined: the kernel then reads one whole tensor.
    name = "+".join(step.target.split(".")[1] for step in layer.steps) or layer.kind
    run, into = _joined(program, position), _joined_into(program, position)
    return Kernel(rows, held, name, run, engine, into, _joined_bind(program, position)), count


def _by_rows(layer: Layer) -> bool:
    return layer.combine is None


@dataclass(frozen=True)
class _Step:
    """A step that ATen does: see :class:`_Bound`; ``spans`` are the rows of its operands."""

    compute: Compute
    refs: tuple[Ref, ...]
    spans: list[Span]
    into: Compute | None
    overwrites: bool


def _bind(
    layer: Layer,
    call: Call,
    j: int,
    made: Span,
    weights: Mapping[str, Tensor],
    fresh: set[int],
    spans: list[Span],
) -> _Step:
    """The step's computation, in place where an operand is nobody else's."""
    operand = _overwritable(layer, call, j, fresh)
    rule = rule_for(call.step.target) if call.out.axis is not None else None
    if operand is not None:
        if operand == 1:
            call, spans = _swapped(call), spans[::-1]
        call = replace(call, step=replace(call.step, target=_IN_PLACE[call.step.target]))
        rule = Elementwise() if call.out.axis is not None else None

    def bound(call: Call) -> Compute:
        if rule is None or not layer.divisible or layer.combine is not None:
            return invoke(call, weights)
        return rule.bind(call, made, weights)

    into = None
    if call.step.target in _OUT and call.step.select is None:
        fill = bound(_with_out(call, len(layer.steps)))

        def into(out: Tensor, *operands: Tensor) -> Tensor:
            return fill(*operands, out)

    return _Step(bound(call), call.step.refs, spans, into, operand is not None)


def _with_out(call: Call, index: int) -> Call:
    """A call with one operand more: the tensor to fill. ``index`` is that of no other step."""
    args = (*call.step.args, ("out", Var(index)))
    step = replace(call.step, target=_OUT[call.step.target], args=args)
    return replace(call, step=step, operands=(*call.operands, call.out))


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


def _places(item: _Bound, position: Mapping[int, int]) -> list[tuple[bool, int]]:
    """Whether each operand is an input of the layer, and its number among these or the values."""
    return [
        (True, ref.index) if isinstance(ref, In) else (False, position[ref.step])
        for ref in item.refs
    ]


def _joined(program: list[_Bound], position: Mapping[int, int]) -> Callable[..., Tensor]:
    """One function of the layer's inputs. Plain chains get a shorter loop."""

    plan = [(item.compute, _places(item, position), item.cuts) for item in program]
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


def _joined_into(
    program: Sequence[_Bound], position: Mapping[int, int]
) -> Callable[..., object] | None:
    """A function of the tensor to fill and the layer's inputs; None where none can fill it.

    The last result lies where the computation put it that it was made by, and which those
    behind it overwrite.
    """
    root = len(program) - 1
    while root >= 0 and program[root].overwrites:
        first = program[root].refs[0]
        assert isinstance(first, Var)
        root = position[first.step]
    if root < 0 or program[root].into is None:
        return None
    fill = program[root].into
    assert fill is not None
    plan = [(item.compute, _places(item, position), item.cuts) for item in program]
    if len(plan) == 1 and not plan[0][2]:
        order = [index for _, index in plan[0][1]]
        if order == list(range(len(order))):
            return fill

    def into(out: Tensor, *inputs: Tensor) -> None:
        values: list[Tensor] = []
        for i, (compute, refs, cuts) in enumerate(plan):
            operands = [inputs[k] if is_input else values[k] for is_input, k in refs]
            for operand, dim, start, length in cuts:
                operands[operand] = operands[operand].narrow(dim, start, length)
            if i == root:
                fill(out, *operands)
                values.append(out)
            else:
                values.append(compute(*operands))

    return into


def _joined_bind(program: Sequence[_Bound], position: Mapping[int, int]) -> Bind | None:
    """The call of machine code that is all there is to do; None where there is more.

    Parts of maps that it reads, in place of whole ones, are nothing to do.
    """
    *views, item = program
    if item.bind is None or not all(view.views for view in views):
        return None
    fill = item.bind
    plan = [(one.compute, _places(one, position), one.cuts) for one in program]

    def bind(out: Tensor, *inputs: Tensor) -> NativeCall | None:
        values: list[Tensor] = []
        for compute, refs, cuts in plan:
            operands = [inputs[i] if is_input else values[i] for is_input, i in refs]
            for operand, dim, start, length in cuts:
                operands[operand] = operands[operand].narrow(dim, start, length)
            if len(values) == len(views):
                return fill(out, *operands)
            values.append(compute(*operands))
        raise AssertionError("the last of them is the call")

    return bind
