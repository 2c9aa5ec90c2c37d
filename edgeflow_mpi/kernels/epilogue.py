"""What may follow a convolution at no cost: a residual sum, then bounds of the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeflow_mpi.graph.rules import Call
from edgeflow_mpi.graph.types import Ref, Step, Var


@dataclass(frozen=True)
class Epilogue:
    """Steps behind a convolution that are done with it.

    Attributes
    ----------
    last : int
        The last of these steps, or the convolution if there are none.
    other : Ref or None
        What is added to the convolution.
    low, high : float
        Bounds of the results: 0 and infinity for a ReLU.
    """

    last: int
    other: Ref | None = None
    low: float = -math.inf
    high: float = math.inf

    def refs(self, convolved: tuple[Ref, ...]) -> tuple[Ref, ...]:
        """All that is read: the convolution's operand, then what is added."""
        return convolved if self.other is None else (*convolved, self.other)


def epilogue(steps: Sequence[Step], calls: Sequence[Call], j: int) -> Epilogue:
    """What follows step ``j``, each step the only reader of the one before."""
    last, other = j, None
    step = _only_reader(steps, last)
    if step is not None and step.target == "aten.add.Tensor":
        others = [ref for ref in step.refs if ref != Var(last)]
        kind = _kind(calls[j])
        # Equal pieces only: nothing is broadcast, cut or converted.
        same = all((s.shape, s.dtype, s.axis) == kind for s in calls[last + 1].operands)
        if len(others) == 1 and same and dict(step.args).get("alpha", 1) == 1:
            other, last = others[0], last + 1
            step = _only_reader(steps, last)
    if step is not None and len(step.refs) == 1:
        args = dict(step.args)
        if step.target == "aten.relu.default":
            return Epilogue(last + 1, other, 0.0)
        if step.target == "aten.hardtanh.default":
            low, high = args["min_val"], args["max_val"]
            if isinstance(low, int | float) and isinstance(high, int | float):
                return Epilogue(last + 1, other, float(low), float(high))
    return Epilogue(last, other)


def _kind(call: Call) -> tuple[object, ...]:
    return call.out.shape, call.out.dtype, call.out.axis


def _only_reader(steps: Sequence[Step], index: int) -> Step | None:
    """The step behind ``index``, if that alone reads it."""
    readers = sum(step.refs.count(Var(index)) for step in steps)
    if index + 1 < len(steps) and readers == 1 and Var(index) in steps[index + 1].refs:
        return steps[index + 1]
    return None
