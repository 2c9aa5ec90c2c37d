"""Reductions over the split axis become summands per rank and a small combination.

So a squeeze-and-excitation block, a classifier's pooling or an instance normalisation never
gathers a map: every rank reduces the rows it owns, and what travels is one value per channel.
Variances take two rounds, the mean first, as sums of squares alone would cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from edgeflow_mpi.graph.draft import Draft, DraftGraph
from edgeflow_mpi.graph.rules import Call
from edgeflow_mpi.graph.rules.pointwise import Reduction
from edgeflow_mpi.graph.types import Arg, In, Step, TensorSpec, Var, Weight

_Kind = Literal["sum", "max"]


def sum_in_parts(graph: DraftGraph) -> None:
    """Rewrite every reduction over the rows of a map that this module knows."""
    drafts: dict[str, Draft] = {}
    for draft in graph.drafts.values():
        for made in _rewritten(graph, draft):
            drafts[made.name] = made
    graph.drafts = drafts


def _rewritten(graph: DraftGraph, draft: Draft) -> Sequence[Draft]:
    """The layers that make ``draft``'s value, itself alone if it is no such reduction."""
    if draft.kind != "compute" or draft.combine or len(draft.steps) != 1 or len(draft.inputs) != 1:
        return (draft,)
    call = graph.call(draft, 0)
    if call.step.refs != (In(0),) or "float" not in call.out.dtype:
        return (draft,)
    source = call.operands[0]
    if source.axis is None or source.rows < 2 or source.dtype != call.out.dtype:
        return (draft,)
    parts = _Parts(graph, draft, call)
    name = call.step.target.split(".")[1]
    if name in _NORMS:
        _NORMS[name](parts)
    else:
        reduced = _reduced(call, name)
        if source.axis in reduced and parts.shape(reduced, _keepdim(parts)) == call.out.shape:
            _PLAIN[name](parts, reduced)
    return parts.drafts or (draft,)


class _Parts:
    """The layers that replace one draft; the last of them has its name."""

    def __init__(self, graph: DraftGraph, draft: Draft, call: Call) -> None:
        self.graph = graph
        self.draft = draft
        self.call = call
        self.source = call.operands[0]
        self.drafts: list[Draft] = []

    def total(self, of: str, dims: tuple[int, ...], keepdim: bool, kind: _Kind = "sum") -> str:
        """A layer whose ranks each reduce their rows of ``of``; gives its name."""
        spec = TensorSpec(self.shape(dims, keepdim), self.source.dtype, None)
        args: tuple[tuple[str, Arg], ...] = (("self", In(0)), ("dim", dims), ("keepdim", keepdim))
        step = Step("aten.amax.default", args, spec)
        if kind == "sum":
            step = Step("aten.sum.dim_IntList", (*args, ("dtype", None)), spec)
        name = self._new_name("part")
        rows = self.source.rows
        self.drafts.append(Draft(name, "compute", [of], [step], spec, rows, True, kind))
        return name

    def shape(self, dims: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
        """Shape of the source with dimensions reduced."""
        sizes = enumerate(self.source.shape)
        return tuple(1 if i in dims else size for i, size in sizes if keepdim or i not in dims)

    def small(self, inputs: list[str], steps: _Steps) -> str:
        """A layer of a few values, between others."""
        name = self._new_name("stat")
        out = steps.made[-1].out
        self.drafts.append(Draft(name, "compute", inputs, steps.made, out, 1, True))
        return name

    def map(self, inputs: list[str], steps: _Steps) -> str:
        """A layer by rows, between others."""
        name = self._new_name("map")
        rows = self.source.rows
        self.drafts.append(Draft(name, "compute", inputs, steps.made, self.source, rows, True))
        return name

    def finish(self, inputs: list[str], steps: _Steps) -> None:
        """The layer with the draft's own name and result."""
        draft, last = self.draft, steps.made[-1]
        steps.made[-1] = Step(last.target, last.args, draft.out)
        divisible = draft.divisible or draft.rows == 1
        self.drafts.append(
            Draft(draft.name, "compute", inputs, steps.made, draft.out, draft.rows, divisible)
        )

    def weight(self, arg: Arg) -> Arg:
        """A weight per channel (or None), in the shape of a map's channels."""
        if not isinstance(arg, Weight):
            return None
        name = f"{self.draft.name}.{arg.name}"
        ones = [1] * (len(self.source.shape) - 2)
        self.graph.weights[name] = self.graph.weights[arg.name].reshape(1, -1, *ones)
        return Weight(name)

    def _new_name(self, kind: str) -> str:
        count = sum(draft.name.startswith(f"{self.draft.name}_{kind}") for draft in self.drafts)
        return f"{self.draft.name}_{kind}{count or ''}"


class _Steps:
    """A chain of calls on values of one shape."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.made: list[Step] = []

    def call(self, target: str, *args: tuple[str, Arg], shape: tuple[int, ...] = ()) -> Var:
        spec = TensorSpec(shape, self.spec.dtype, None) if shape else self.spec
        self.made.append(Step(f"aten.{target}", args, spec))
        return Var(len(self.made) - 1)

    def unary(self, target: str, value: Arg) -> Var:
        return self.call(target, ("self", value))

    def binary(self, target: str, value: Arg, other: Arg) -> Var:
        return self.call(target, ("self", value), ("other", other))


def _reduced(call: Call, name: str) -> tuple[int, ...]:
    """Dimensions that the call reduces to one place each; none if it is not known here."""
    before, after = call.operands[0].shape, call.out.shape
    if name.startswith(("adaptive", "_adaptive", "avg_pool")):
        if call.step.select not in (None, 0) or len(before) != len(after) or after[2] != 1:
            return ()
        if name.startswith("avg_pool") and not _covers(call):
            return ()
        dims = tuple(i for i in range(2, len(before)) if after[i] == 1)
        kept = all(before[i] == after[i] for i in range(2, len(before)) if i not in dims)
        return dims if kept and name in _PLAIN else ()
    if name not in _PLAIN or (name in ("max", "min") and call.step.select not in (None, 0)):
        return ()
    if name == "linalg_vector_norm" and call.args["ord"] not in (1, 2):
        return ()
    if "dim" not in call.args:
        return tuple(range(len(before)))
    return tuple(sorted(Reduction().reduced(call)))


def _covers(call: Call) -> bool:
    """Whether an average pool has one window, and that is the whole map."""
    spatial = call.operands[0].shape[2:]
    plain = call.args.get("divisor_override") is None and not any(
        call.ints("padding", len(spatial))
    )
    return (
        plain
        and call.ints("kernel_size", len(spatial)) == spatial
        and set(call.out.shape[2:]) == {1}
    )


def _keepdim(parts: _Parts) -> bool:
    return len(parts.draft.out.shape) == len(parts.source.shape)


def _mean(parts: _Parts, dims: tuple[int, ...]) -> None:
    count = math.prod(parts.source.shape[i] for i in dims)
    _finished(parts, dims, lambda steps, x: steps.binary("mul.Scalar", x, 1.0 / count))


def _sum(parts: _Parts, dims: tuple[int, ...]) -> None:
    _finished(parts, dims, lambda steps, x: steps.unary("alias.default", x))


def _finished(
    parts: _Parts, dims: tuple[int, ...], finish: Callable[[_Steps, Arg], Var], kind: _Kind = "sum"
) -> None:
    part = parts.total(parts.draft.inputs[0], dims, _keepdim(parts), kind)
    steps = _Steps(parts.draft.out)
    finish(steps, In(0))
    parts.finish([part], steps)


def _max(parts: _Parts, dims: tuple[int, ...]) -> None:
    _finished(parts, dims, lambda steps, x: steps.unary("alias.default", x), "max")


def _min(parts: _Parts, dims: tuple[int, ...]) -> None:
    negate = _Steps(parts.source)
    negate.unary("neg.default", In(0))
    part = parts.total(parts.map(parts.draft.inputs, negate), dims, _keepdim(parts), "max")
    steps = _Steps(parts.draft.out)
    steps.unary("neg.default", In(0))
    parts.finish([part], steps)


def _norm(parts: _Parts, dims: tuple[int, ...]) -> None:
    magnitude = _Steps(parts.source)
    euclidean = parts.call.args["ord"] == 2
    if euclidean:
        magnitude.binary("mul.Tensor", In(0), In(0))
    else:
        magnitude.unary("abs.default", In(0))
    part = parts.total(parts.map(parts.draft.inputs, magnitude), dims, _keepdim(parts))
    steps = _Steps(parts.draft.out)
    steps.unary("sqrt.default" if euclidean else "alias.default", In(0))
    parts.finish([part], steps)


def _variance(parts: _Parts, dims: tuple[int, ...]) -> None:
    """``var``, ``std``, and the same together with the mean."""
    args, name = parts.call.args, parts.call.step.target.split(".")[1]
    if name.endswith("_mean") and parts.call.step.select == 1:
        return _mean(parts, dims)
    correction = args["correction"] if "correction" in args else int(bool(args["unbiased"]))
    assert isinstance(correction, int | float | None)
    count = math.prod(parts.source.shape[i] for i in dims)
    squares = _squares(parts, dims, _mean_of(parts, dims, groups=None))
    part = parts.total(squares, dims, _keepdim(parts))
    steps = _Steps(parts.draft.out)
    freedom = count - (1 if correction is None else correction)
    value = steps.binary("mul.Scalar", In(0), 1.0 / freedom if freedom > 0 else math.nan)
    if name.startswith("std"):
        steps.unary("sqrt.default", value)
    parts.finish([part], steps)
    return None


def _mean_of(parts: _Parts, dims: tuple[int, ...], groups: int | None) -> str:
    """A layer with the mean over some dimensions, which keep one place each."""
    part = parts.total(parts.draft.inputs[0], dims, True)
    steps = _Steps(TensorSpec(parts.shape(dims, True), parts.source.dtype, None))
    _averaged(steps, math.prod(parts.source.shape[i] for i in dims), groups)
    return parts.small([part], steps)


def _averaged(steps: _Steps, count: int, groups: int | None) -> Var:
    """The mean from a sum per channel, over groups of channels where there are any."""
    value = steps.binary("mul.Scalar", In(0), 1.0 / count)
    batch, channels = steps.spec.shape[:2]
    if groups is None or groups == channels:
        return value
    shape = (batch, groups, channels // groups)
    grouped = steps.call("reshape.default", ("self", value), ("shape", shape), shape=shape)
    mean = steps.call(
        "mean.dim", ("self", grouped), ("dim", (2,)), ("keepdim", True), ("dtype", None),
        shape=(batch, groups, 1),
    )  # fmt: skip
    spread = steps.call("expand.default", ("self", mean), ("size", shape), shape=shape)
    return steps.call("reshape.default", ("self", spread), ("shape", steps.spec.shape))


def _squares(parts: _Parts, dims: tuple[int, ...], mean: str) -> str:
    """A layer with the squared differences from the mean."""
    steps = _Steps(parts.source)
    centred = steps.binary("sub.Tensor", In(0), In(1))
    steps.binary("mul.Tensor", centred, centred)
    return parts.map([parts.draft.inputs[0], mean], steps)


def _group_norm(parts: _Parts) -> None:
    groups = parts.call.integer("num_groups")
    _normalised(parts, tuple(range(2, len(parts.source.shape))), groups)


def _instance_norm(parts: _Parts) -> None:
    if parts.call.args["use_input_stats"]:
        _normalised(parts, tuple(range(2, len(parts.source.shape))), None)


def _batch_norm(parts: _Parts) -> None:
    if parts.call.step.select in (None, 0) and parts.call.args["training"]:
        _normalised(parts, (0, *range(2, len(parts.source.shape))), None)


def _normalised(parts: _Parts, dims: tuple[int, ...], groups: int | None) -> None:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, mean and variance by parts."""
    args, source = parts.call.args, parts.source
    if source.axis not in dims or parts.draft.out.axis != source.axis:
        return
    mean = _mean_of(parts, dims, groups)
    part = parts.total(_squares(parts, dims, mean), dims, True)
    steps = _Steps(TensorSpec(parts.shape(dims, True), source.dtype, None))
    value = _averaged(steps, math.prod(source.shape[i] for i in dims), groups)
    value = steps.binary("add.Scalar", value, args["eps"])
    value = steps.unary("rsqrt.default", value)
    if (weight := parts.weight(args["weight"])) is not None:
        steps.binary("mul.Tensor", value, weight)
    scale = parts.small([part], steps)
    steps = _Steps(source)
    value = steps.binary("sub.Tensor", In(0), In(1))
    value = steps.binary("mul.Tensor", value, In(2))
    if (bias := parts.weight(args["bias"])) is not None:
        steps.binary("add.Tensor", value, bias)
    parts.finish([parts.draft.inputs[0], mean, scale], steps)


_PLAIN: dict[str, Callable[[_Parts, tuple[int, ...]], None]] = {
    "mean": _mean, "sum": _sum, "amax": _max, "max": _max, "amin": _min, "min": _min,
    "linalg_vector_norm": _norm, "var": _variance, "std": _variance, "var_mean": _variance,
    "std_mean": _variance, "_adaptive_avg_pool2d": _mean, "_adaptive_avg_pool3d": _mean,
    **{f"adaptive_avg_pool{n}d": _mean for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _max for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _mean for n in (1, 2, 3)},
}  # fmt: skip
_NORMS: dict[str, Callable[[_Parts], None]] = {
    "group_norm": _group_norm, "instance_norm": _instance_norm,
    "_native_batch_norm_legit": _batch_norm, "batch_norm": _batch_norm,
}  # fmt: skip
