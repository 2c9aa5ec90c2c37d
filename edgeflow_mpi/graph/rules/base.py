"""What a row rule is, and the plumbing that all rules share.

A rule answers three questions about one ATen call: along which axis its result may be
divided, which rows of each operand a span of result rows needs, and how to compute exactly
that span from exactly those rows. The answers must agree with the undivided call to
rounding, for every span.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.graph.types import Arg, In, Step, Symbol, TensorSpec, Var, Weight
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
Compute = Callable[..., Tensor]
"""Takes one tensor per operand (in the order of ``Step.refs``), gives the result's rows."""


@dataclass(frozen=True)
class Call:
    """One step with the whole (undivided) specs of its operands.

    ``operands`` is aligned with ``step.refs``; ``weights`` covers ``step.weights``.
    """

    step: Step
    operands: tuple[TensorSpec, ...]
    weights: Mapping[str, TensorSpec]

    @cached_property
    def args(self) -> Mapping[str, Arg]:
        return dict(self.step.args)

    @property
    def out(self) -> TensorSpec:
        return self.step.out

    def ints(self, name: str, count: int) -> tuple[int, ...]:
        """Argument ``name`` as ``count`` integers; one integer stands for all of them."""
        value = self.args[name]
        items = value if isinstance(value, tuple) else (value,)
        if len(items) == 1:
            items = items * count
        return tuple(int(item) for item in items)  # type: ignore[arg-type]

    def integer(self, name: str) -> int:
        return int(self.args[name])  # type: ignore[arg-type]

    def dim(self, name: str, ndim: int) -> int:
        """Argument ``name`` as a dimension counted from the front."""
        value = self.integer(name)
        return value + ndim if value < 0 else value

    def weight(self, name: str) -> TensorSpec | None:
        """The spec of tensor argument ``name`` if it is a weight."""
        arg = self.args[name]
        return self.weights[arg.name] if isinstance(arg, Weight) else None


class Rule(ABC):
    """The row rule of a family of operators."""

    follows: bool = False
    """Whether the operator is cheap and row by row, so that it fuses behind its producer."""

    @abstractmethod
    def axis(self, call: Call) -> int | None:
        """Split axis of the result, or None where this very call cannot be done by rows."""

    def gains(self, call: Call, axis: int) -> bool:
        """Whether dimension ``axis`` of the result may be divided though no operand is.

        True where the result gains those rows by broadcasting; the operands are then needed
        whole.
        """
        return False

    @abstractmethod
    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        """Rows of each operand that the non-empty result span ``rows`` needs, never none."""

    @abstractmethod
    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        """A function of the needed operand rows that returns the result's ``rows``."""


def whole(specs: Sequence[TensorSpec]) -> tuple[Span, ...]:
    """The need of an operator without a rule: all rows of every operand."""
    return tuple(Span(0, spec.rows) for spec in specs)


def resolve(target: str) -> Any:
    """The ATen (or other) operator named ``namespace.name.overload``."""
    try:
        namespace, name, overload = target.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"operator {target} is not in this build of torch ({torch.__version__}): use the "
            "same torch and the same operator packages on every device"
        ) from error


def invoke(call: Call, weights: Weights, **replaced: object) -> Compute:
    """The call itself as a function of its operands, some arguments replaced by name.

    Tensors among the operands are put where the step's arguments name them.
    """
    operator = resolve(call.step.target)
    names = [name for name, _ in call.step.args]
    if unknown := set(replaced) - set(names):
        raise TypeError(f"{call.step.target} has no argument {unknown}")
    keyword_only = {arg.name for arg in operator._schema.arguments if arg.kwarg_only}
    counter = iter(range(len(call.step.refs)))
    positional: list[object] = []
    keywords: dict[str, object] = {}
    for name, arg in call.step.args:
        value = _concrete(arg, weights, counter)
        if name in replaced:
            value = replaced[name]
        if name in keyword_only:
            keywords[name] = value
        else:
            positional.append(value)
    select = call.step.select

    def run(*tensors: Tensor) -> Tensor:
        result = operator(*_filled(positional, tensors), **_filled_map(keywords, tensors))
        picked: Tensor = result if select is None else result[select]
        return picked

    simple = [i for i, value in enumerate(positional) if isinstance(value, _Hole)]
    nested = any(isinstance(value, list) and _holes(value) for value in positional)
    if nested or _holes(list(keywords.values())) or select is not None:
        return run
    if simple == [0] and len(call.step.refs) == 1:
        rest = tuple(positional[1:])
        return lambda tensor: operator(tensor, *rest, **keywords)
    if simple == [0, 1] and len(call.step.refs) == 2:
        rest = tuple(positional[2:])
        return lambda first, second: operator(first, second, *rest, **keywords)
    return run


@dataclass(frozen=True)
class _Hole:
    """Where operand number ``index`` goes."""

    index: int


def _concrete(arg: Arg, weights: Weights, counter: Any) -> object:
    match arg:
        case In() | Var():
            return _Hole(next(counter))
        case Weight(name):
            return weights[name]
        case Symbol(kind, name):
            return torch.device(name) if kind == "device" else getattr(torch, name)
        case tuple():
            return [_concrete(item, weights, counter) for item in arg]
        case _:
            return arg


def _holes(value: object) -> bool:
    if isinstance(value, list):
        return any(_holes(item) for item in value)
    return isinstance(value, _Hole)


def _filled(values: Sequence[object], tensors: Sequence[Tensor]) -> list[object]:
    return [
        tensors[value.index]
        if isinstance(value, _Hole)
        else _filled(value, tensors)
        if isinstance(value, list)
        else value
        for value in values
    ]


def _filled_map(values: Mapping[str, object], tensors: Sequence[Tensor]) -> dict[str, object]:
    if not values:
        return {}
    return dict(zip(values, _filled(list(values.values()), tensors), strict=True))


def clip(start: int, stop: int, rows: int) -> Span:
    """``[start, stop)`` within ``[0, rows)``, never empty.

    A window that lies wholly in the padding keeps the row nearest to it, so that a
    non-empty result always has a non-empty need; :func:`fit_rows` drops that row again.
    """
    first = min(max(start, 0), rows - 1)
    return Span(first, max(min(stop, rows), first + 1))


def settle(rows: int, before: int, after: int) -> tuple[int, int]:
    """Amounts with the effect of ``before`` and ``after`` that never crop more than there is.

    A span that lies wholly in the padding keeps none of its ``rows``: torch crops first, and
    would be left with less than nothing.
    """
    if rows - max(-before, 0) - max(-after, 0) > 0:
        return before, after
    return before + rows + after, -rows


def pad_rows(tensor: Tensor, axis: int, before: int, after: int, value: float = 0.0) -> Tensor:
    """``tensor`` with rows of ``value`` added along ``axis``; negative counts remove rows."""
    if before == 0 and after == 0:
        return tensor
    amounts = [0, 0] * (tensor.dim() - 1 - axis) + [before, after]
    return torch.constant_pad_nd(tensor, amounts, value)


def shape_args(shape: Sequence[int], axis: int | None, rows: int) -> list[int]:
    """``shape`` with the extent along ``axis`` replaced by ``rows``."""
    return [rows if i == axis else size for i, size in enumerate(shape)]
