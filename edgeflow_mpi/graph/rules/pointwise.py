"""Operators that compute row r of the result from row r of their operands.

Elementwise operators with broadcasting, normalisation and reductions along other
dimensions, linear layers over the last dimension, concatenation along channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.graph.rules.base import Call, Compute, Rule, Tensor, Weights, invoke, resolve
from edgeflow_mpi.graph.types import Arg, TensorSpec
from edgeflow_mpi.spans import Span


def is_elementwise(target: str) -> bool:
    """Whether torch itself tags the operator as elementwise (with broadcasting)."""
    try:
        operator = resolve(target)
    except ModelError:
        return False
    returns = operator._schema.returns
    return torch.Tag.pointwise in operator.tags and len(returns) == 1


class Elementwise(Rule):
    """Any operator that broadcasts its operands and works element by element."""

    follows = True

    def axis(self, call: Call) -> int | None:
        ndim = len(call.out.shape)
        axes = {
            spec.axis + ndim - len(spec.shape)
            for spec in call.operands
            if spec.axis is not None and not self._broadcasts(call, spec, spec.axis)
        }
        if len(axes) != 1:
            return None
        (axis,) = axes
        return axis if 0 <= axis < ndim else None

    @staticmethod
    def _broadcasts(call: Call, spec: TensorSpec, axis: int) -> bool:
        """Whether dimension ``axis`` of an operand has extent 1 and the result's has more."""
        made = call.out.shape[axis + len(call.out.shape) - len(spec.shape)]
        return spec.shape[axis] == 1 and made != 1

    @staticmethod
    def _place(call: Call, spec: TensorSpec) -> int:
        """The operand's dimension under the result's split axis; negative: it has none."""
        assert call.out.axis is not None
        return call.out.axis - (len(call.out.shape) - len(spec.shape))

    def _aligned(self, call: Call, spec: TensorSpec) -> bool:
        return spec.axis == self._place(call, spec) and spec.rows == call.out.rows

    def _cut(self, call: Call, spec: TensorSpec) -> bool:
        """Whether an operand that is there whole must be cut down to the result's rows."""
        place = self._place(call, spec)
        return place >= 0 and spec.shape[place] == call.out.rows

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return tuple(
            rows if self._aligned(call, spec) else Span(0, spec.rows) for spec in call.operands
        )

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        if rows.rows == call.out.rows:
            return invoke(call, weights)
        cut = dict(weights)
        for name in call.step.weights:
            spec = call.weights[name]
            if self._cut(call, spec):
                place = self._place(call, spec)
                cut[name] = weights[name].narrow(place, rows.start, rows.rows)
        run = invoke(call, cut)
        wholes = [
            (i, self._place(call, spec))
            for i, spec in enumerate(call.operands)
            if not self._aligned(call, spec) and self._cut(call, spec)
        ]
        if not wholes:
            return run

        def compute(*tensors: Tensor) -> Tensor:
            pieces = list(tensors)
            for i, place in wholes:
                pieces[i] = pieces[i].narrow(place, rows.start, rows.rows)
            return run(*pieces)

        return compute


class Aligned(Rule):
    """Row by row in the first operand; the split axis keeps its place.

    ``dims`` names the argument that lists dimensions the operator works along (one integer
    or several); where the split axis is among them there is no rule. ``last`` counts
    trailing dimensions that it works along.
    """

    def __init__(self, dims: str | None = None, *, last: int = 0, follows: bool = True) -> None:
        self._dims = dims
        self._last = last
        self.follows = follows

    def _used(self, call: Call) -> set[int] | None:
        ndim = len(call.operands[0].shape)
        used = set(range(ndim - self._last, ndim))
        if self._dims is not None:
            value = call.args[self._dims]
            if value is None:
                return None
            items: Sequence[Arg] = value if isinstance(value, tuple) else (value,)
            used |= {int(item) % ndim for item in items}  # type: ignore[arg-type]
        return used

    def axis(self, call: Call) -> int | None:
        axis = call.operands[0].axis
        used = self._used(call)
        same = len(call.operands) == 1 and len(call.out.shape) == len(call.operands[0].shape)
        if axis is None or used is None or axis in used or not same:
            return None
        return axis if call.out.shape[axis] == call.operands[0].rows else None

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (rows,)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        return invoke(call, weights)


class Pick(Aligned):
    """``x[:, index]`` with a constant list of places along another dimension than the axis."""

    def axis(self, call: Call) -> int | None:
        indices = call.args["indices"]
        assert isinstance(indices, tuple)
        used = [dim for dim, index in enumerate(indices) if index is not None]
        if len(used) != 1 or call.operands[0].axis in used or len(call.step.weights) != 1:
            return None
        index = call.weights[call.step.weights[0]]
        return super().axis(call) if len(index.shape) == 1 and index.dtype != "bool" else None

    def _used(self, call: Call) -> set[int]:
        return set()


class LayerNorm(Aligned):
    """Normalises over the last dimensions; the split axis must not be one of them."""

    def _used(self, call: Call) -> set[int]:
        ndim = len(call.operands[0].shape)
        shape = call.args["normalized_shape"]
        assert isinstance(shape, tuple)
        return set(range(ndim - len(shape), ndim))

    def axis(self, call: Call) -> int | None:
        return super().axis(call) if call.step.select in (None, 0) else None


class ChannelWise(Aligned):
    """Works per channel (dimension 1) with weights: batch normalisation in eval, PReLU."""

    def axis(self, call: Call) -> int | None:
        if call.operands[0].axis == 1 or call.step.select not in (None, 0):
            return None
        if call.args.get("training"):
            return None  # it normalises with the statistics of the whole map
        return super().axis(call)


class WholeMap(Aligned):
    """Normalises with statistics of the whole map, so that any row needs all of it.

    Capture divides it into summands and an elementwise layer; this is what is left to a map
    of a single row. With statistics that are weights it works row by row.
    """

    def __init__(self) -> None:
        super().__init__(follows=False)

    @staticmethod
    def _local(call: Call) -> bool:
        return call.args.get("use_input_stats") is False

    def axis(self, call: Call) -> int | None:
        axis = call.operands[0].axis
        fits = axis is not None and axis >= 2 and call.step.select in (None, 0)
        return super().axis(call) if fits else None

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (rows if self._local(call) else Span(0, call.operands[0].rows),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        run, axis = invoke(call, weights), call.out.axis
        if self._local(call) or rows.rows == call.out.rows:
            return run
        assert axis is not None
        return lambda tensor: run(tensor).narrow(axis, rows.start, rows.rows)


class Linear(Aligned):
    """``x W^T + b`` over the last dimension, with W a weight."""

    def __init__(self) -> None:
        super().__init__(last=1, follows=False)

    def axis(self, call: Call) -> int | None:
        return super().axis(call) if call.weight("weight") is not None else None


class RightMatmul(Aligned):
    """``x @ W`` over the last dimension, with W a two-dimensional weight."""

    def __init__(self) -> None:
        super().__init__(last=1, follows=False)

    def axis(self, call: Call) -> int | None:
        spec = call.weight("other")
        return super().axis(call) if spec is not None and len(spec.shape) == 2 else None


class Concatenate(Rule):
    """Concatenation along any other dimension than the split axis.

    Constants, and operands that are not divided, are cut down to the span's rows.
    """

    def __init__(self, *, new_dimension: bool = False) -> None:
        self._new = new_dimension

    def axis(self, call: Call) -> int | None:
        axes = {spec.axis for spec in call.operands if spec.axis is not None}
        dim = call.dim("dim", len(call.out.shape))
        if len(axes) != 1 or (dim in axes and not self._new):
            return None
        (axis,) = axes
        return axis + 1 if self._new and dim <= axis else axis

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return tuple(Span(0, 1) if spec.axis is None else rows for spec in call.operands)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        dim = call.dim("dim", len(call.out.shape))
        if rows.rows == call.out.rows:
            return invoke(call, weights)
        assert call.out.axis is not None
        axis = call.out.axis - (1 if self._new and dim < call.out.axis else 0)

        def cut(tensor: Tensor) -> Tensor:
            return tensor.narrow(axis, rows.start, rows.rows)

        run = invoke(call, {name: cut(weights[name]) for name in call.step.weights})
        wholes = [i for i, spec in enumerate(call.operands) if spec.axis is None]

        def compute(*tensors: Tensor) -> Tensor:
            pieces = list(tensors)
            for i in wholes:
                pieces[i] = cut(pieces[i])
            return run(*pieces)

        return compute if wholes else run


@dataclass(frozen=True)
class Reduction(Rule):
    """A mean, sum, maximum or the like along other dimensions than the split axis.

    Where the split axis is reduced as well, capture makes a layer of summands instead where
    it can (:mod:`edgeflow_mpi.graph.fuse`).
    """

    dims: str = "dim"
    follows = True

    def reduced(self, call: Call) -> frozenset[int]:
        """Dimensions that are reduced, counted from the front."""
        ndim = len(call.operands[0].shape)
        value = call.args[self.dims]
        if value is None or value == ():
            return frozenset(range(ndim))
        items = value if isinstance(value, tuple) else (value,)
        return frozenset(int(item) % ndim for item in items)  # type: ignore[arg-type]

    def axis(self, call: Call) -> int | None:
        axis, reduced = call.operands[0].axis, self.reduced(call)
        if axis is None or axis in reduced or len(call.operands) != 1:
            return None
        if call.args.get("keepdim"):
            return axis
        return axis - sum(1 for dim in reduced if dim < axis)

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        return (rows,)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        return invoke(call, weights)


def pointwise_rules() -> dict[str, Rule]:
    """Operator name -> rule, for the operators that torch does not tag as elementwise."""
    norm = ChannelWise()
    return {
        "aten._to_copy.default": Elementwise(),
        "aten.to.dtype": Elementwise(),
        "aten.fill.Scalar": Elementwise(),
        "aten.hardswish.default": Elementwise(),
        "aten.log_sigmoid.default": Elementwise(),
        "aten.floor_divide.default": Elementwise(),
        "aten.rsub.Tensor": Elementwise(),
        "aten.where.ScalarOther": Elementwise(),
        "aten.where.ScalarSelf": Elementwise(),
        "aten._native_batch_norm_legit_no_training.default": norm,
        "aten.batch_norm.default": norm,
        "aten.prelu.default": norm,
        "aten.group_norm.default": WholeMap(),
        "aten.instance_norm.default": WholeMap(),
        "aten._native_batch_norm_legit.no_stats": WholeMap(),
        "aten._native_batch_norm_legit.default": WholeMap(),
        "aten.layer_norm.default": LayerNorm(),
        "aten.native_layer_norm.default": LayerNorm(),
        "aten.linear.default": Linear(),
        "aten.matmul.default": RightMatmul(),
        "aten.softmax.int": Aligned("dim"),
        "aten._softmax.default": Aligned("dim"),
        "aten.log_softmax.int": Aligned("dim"),
        "aten._log_softmax.default": Aligned("dim"),
        "aten.cumsum.default": Aligned("dim"),
        "aten.cumprod.default": Aligned("dim"),
        "aten.topk.default": Aligned("dim"),
        "aten.sort.default": Aligned("dim"),
        "aten.argsort.default": Aligned("dim"),
        "aten.index_select.default": Aligned("dim"),
        "aten.repeat_interleave.self_int": Aligned("dim"),
        "aten.index.Tensor": Pick(),
        "aten.glu.default": Aligned("dim"),
        "aten.roll.default": Aligned("dims"),
        "aten.flip.default": Aligned("dims"),
        "aten.channel_shuffle.default": Aligned(),
        "aten.cat.default": Concatenate(),
        "aten.stack.default": Concatenate(new_dimension=True),
        **{f"aten.{name}": Reduction() for name in _REDUCTIONS},
    }


_REDUCTIONS = (
    "mean.dim", "sum.dim_IntList", "prod.dim_int", "amax.default", "amin.default", "max.dim",
    "min.dim", "argmax.default", "argmin.default", "median.dim", "any.dim", "any.dims", "all.dim",
    "all.dims", "logsumexp.default", "linalg_vector_norm.default", "var.dim", "var.correction",
    "std.dim", "std.correction", "var_mean.dim", "var_mean.correction", "std_mean.dim",
    "std_mean.correction",
)  # fmt: skip
