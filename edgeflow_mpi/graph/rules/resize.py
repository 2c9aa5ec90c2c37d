"""Upsampling and other interpolation, divided by rows exactly as torch interpolates.

Interpolation is separable, and along the rows it is a sparse matrix: each result row mixes a
few operand rows. The matrix is read off the operator itself, by interpolating the identity,
so that every mode, alignment and scale convention is torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from edgeflow_mpi.graph.rules.base import Call, Compute, Rule, Tensor, Weights, resolve
from edgeflow_mpi.spans import Span

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


Scales = tuple[float | None, ...]


@dataclass(frozen=True)
class _Mode:
    """An interpolation operator with its options, apart from sizes and scales."""

    target: str
    align: bool | None

    def __call__(self, tensor: Tensor, size: Sequence[int], scales: Scales) -> Tensor:
        options: tuple[object, ...] = () if self.align is None else (self.align,)
        result: Tensor = resolve(self.target)(tensor, list(size), *options, *scales)
        return result


@lru_cache(maxsize=256)
def _row_matrix(mode: _Mode, ndim: int, height: int, made: int, scale: float | None) -> Matrix:
    """Weights of the operand rows in each result row, shape (made, height)."""
    # One channel for each operand row; along other dimensions there is nothing to mix. They
    # are two wide, because torch's antialiasing skips the rows of a map of one column.
    identity = torch.eye(height, dtype=torch.float64)
    columns = [2] * (ndim - 1)
    wide = identity.reshape(1, height, height, *[1] * (ndim - 1)).expand(-1, -1, -1, *columns)
    mixed = mode(wide.contiguous(), (made, *columns), (scale, *[None] * (ndim - 1)))
    return np.ascontiguousarray(mixed.reshape(height, made, -1)[:, :, 0].numpy().T)


@lru_cache(maxsize=256)
def _reach(
    mode: _Mode, ndim: int, height: int, made: int, scale: float | None
) -> tuple[Matrix, Matrix]:
    """First and one past the last operand row of each result row."""
    used = _row_matrix(mode, ndim, height, made, scale) != 0
    return used.argmax(axis=1), height - used[:, ::-1].argmax(axis=1)


class Resize(Rule):
    """Interpolation of a map over its ``ndim`` spatial dimensions."""

    def __init__(self, name: str, ndim: int) -> None:
        self._name = name
        self._ndim = ndim

    def axis(self, call: Call) -> int | None:
        spec = call.operands[0]
        fits = len(spec.shape) == self._ndim + 2 and spec.axis == 2 and len(call.operands) == 1
        return 2 if fits else None

    def _scales(self, call: Call) -> Scales:
        if "scale_factors" in call.args:
            factors = call.args["scale_factors"]
            if isinstance(factors, tuple):
                return tuple(float(factor) for factor in factors)  # type: ignore[arg-type]
            return (None,) * self._ndim
        names = {1: ("scales",), 2: ("scales_h", "scales_w")}
        given = [call.args[n] for n in names.get(self._ndim, ("scales_d", "scales_h", "scales_w"))]
        return tuple(None if s is None else float(s) for s in given)  # type: ignore[arg-type]

    def _mode(self, call: Call) -> _Mode:
        align = call.args.get("align_corners")
        return _Mode(f"aten.{self._name}.default", None if align is None else bool(align))

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        height, made = call.operands[0].rows, call.out.rows
        low, high = _reach(self._mode(call), self._ndim, height, made, self._scales(call)[0])
        chosen = slice(rows.start, rows.stop)
        return (Span(int(low[chosen].min()), int(high[chosen].max())),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        height, (made, *across) = call.operands[0].rows, call.out.shape[2:]
        mode, (scale, *others) = self._mode(call), self._scales(call)
        (need,) = self.needs(call, rows)
        if rows.rows == made and need.rows == height:
            return lambda tensor: mode(tensor, (made, *across), (scale, *others))
        matrix = _row_matrix(mode, self._ndim, height, made, scale)
        part = matrix[rows.start : rows.stop, need.start : need.stop]
        taps = int((part != 0).sum(axis=1).max())
        order = np.argsort(part == 0, axis=1, kind="stable")[:, :taps]
        dtype = getattr(torch, call.out.dtype)
        factors = torch.from_numpy(np.take_along_axis(part, order, axis=1)).to(dtype)
        picks = [torch.from_numpy(order[:, tap].copy()) for tap in range(taps)]
        column = (-1, *[1] * len(across))
        shares = [factors[:, tap].reshape(column).contiguous() for tap in range(taps)]
        exact = taps == 1 and bool((factors == 1).all())

        def compute(tensor: Tensor) -> Tensor:
            mixed = tensor.index_select(2, picks[0])
            if not exact:
                mixed = mixed * shares[0]
                for pick, share in zip(picks[1:], shares[1:], strict=True):
                    mixed = mixed.addcmul_(tensor.index_select(2, pick), share)
            # The rows are there; along the columns torch interpolates by itself.
            return mode(mixed, (rows.rows, *across), (None, *others)) if across else mixed

        return compute


def resize_rules() -> dict[str, Rule]:
    """Operator name -> rule, for both calling conventions of every mode."""
    names = {
        **{f"upsample_nearest{n}d": n for n in (1, 2, 3)},
        **{f"_upsample_nearest_exact{n}d": n for n in (1, 2, 3)},
        "upsample_linear1d": 1,
        "upsample_bilinear2d": 2,
        "upsample_bicubic2d": 2,
        "_upsample_bilinear2d_aa": 2,
        "_upsample_bicubic2d_aa": 2,
        "upsample_trilinear3d": 3,
    }
    return {
        f"aten.{name}.{kind}": Resize(name, ndim)
        for name, ndim in names.items()
        for kind in ("default", "vec")
    }
