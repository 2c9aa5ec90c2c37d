"""Upsampling and other interpolation, divided by rows exactly as torch interpolates.

Interpolation is separable, and along the rows it is a sparse matrix: each result row mixes a
few operand rows. The matrix is read off the operator itself, by interpolating the identity,
so that every mode, alignment and scale convention is torch's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from edgeflow_mpi.graph.rules.base import Call, Compute, Rule, Tensor, Weights, resolve
from edgeflow_mpi.spans import Span

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


@dataclass(frozen=True)
class _Mode:
    """An interpolation operator with its options, apart from sizes and scales."""

    target: str
    align: bool | None

    def __call__(
        self, tensor: Tensor, size: tuple[int, int], scales: tuple[float | None, float | None]
    ) -> Tensor:
        options: tuple[object, ...] = () if self.align is None else (self.align,)
        result: Tensor = resolve(self.target)(tensor, size, *options, *scales)
        return result


@lru_cache(maxsize=256)
def _row_matrix(mode: _Mode, height: int, made: int, scale: float | None) -> Matrix:
    """Weights of the operand rows in each result row, shape (made, height)."""
    identity = torch.eye(height, dtype=torch.float64).reshape(1, 1, height, height)
    # The second dimension keeps its size, so interpolation along it changes nothing.
    mixed = mode(identity, (made, height), (scale, None))
    return mixed.reshape(made, height).numpy()


@lru_cache(maxsize=256)
def _reach(mode: _Mode, height: int, made: int, scale: float | None) -> tuple[Matrix, Matrix]:
    """First and one past the last operand row of each result row, made monotone."""
    used = _row_matrix(mode, height, made, scale) != 0
    low = used.argmax(axis=1)
    high = height - used[:, ::-1].argmax(axis=1)
    return np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)


class Resize(Rule):
    """Interpolation of a map over its two spatial dimensions."""

    def __init__(self, name: str) -> None:
        self._name = name

    def axis(self, call: Call) -> int | None:
        spec = call.operands[0]
        fits = len(spec.shape) == 4 and spec.axis == 2 and len(call.operands) == 1
        return 2 if fits else None

    def _scales(self, call: Call) -> tuple[float | None, float | None]:
        if "scale_factors" in call.args:
            factors = call.args["scale_factors"]
            if isinstance(factors, tuple):
                return float(factors[0]), float(factors[1])  # type: ignore[arg-type]
            return None, None
        first, second = call.args["scales_h"], call.args["scales_w"]
        return (
            None if first is None else float(first),  # type: ignore[arg-type]
            None if second is None else float(second),  # type: ignore[arg-type]
        )

    def _mode(self, call: Call) -> _Mode:
        align = call.args.get("align_corners")
        return _Mode(f"aten.{self._name}.default", None if align is None else bool(align))

    def needs(self, call: Call, rows: Span) -> tuple[Span, ...]:
        height, made = call.operands[0].rows, call.out.rows
        low, high = _reach(self._mode(call), height, made, self._scales(call)[0])
        return (Span(int(low[rows.start]), int(high[rows.stop - 1])),)

    def bind(self, call: Call, rows: Span, weights: Weights) -> Compute:
        height, (made, width) = call.operands[0].rows, call.out.shape[2:]
        mode, (scale, across) = self._mode(call), self._scales(call)
        (need,) = self.needs(call, rows)
        if rows.rows == made and need.rows == height:
            return lambda tensor: mode(tensor, (made, width), (scale, across))
        matrix = _row_matrix(mode, height, made, scale)
        part = matrix[rows.start : rows.stop, need.start : need.stop]
        taps = int((part != 0).sum(axis=1).max())
        order = np.argsort(part == 0, axis=1, kind="stable")[:, :taps]
        dtype = getattr(torch, call.out.dtype)
        factors = torch.from_numpy(np.take_along_axis(part, order, axis=1)).to(dtype)
        picks = [torch.from_numpy(order[:, tap].copy()) for tap in range(taps)]
        shares = [factors[:, tap].reshape(-1, 1).contiguous() for tap in range(taps)]
        exact = taps == 1 and bool((factors == 1).all())

        def compute(tensor: Tensor) -> Tensor:
            mixed = tensor.index_select(2, picks[0])
            if not exact:
                mixed = mixed * shares[0]
                for pick, share in zip(picks[1:], shares[1:], strict=True):
                    mixed = mixed.addcmul_(tensor.index_select(2, pick), share)
            return mode(mixed, (rows.rows, width), (None, across))

        return compute


def resize_rules() -> dict[str, Rule]:
    """Operator name -> rule, for both calling conventions of every mode."""
    names = (
        "upsample_nearest2d",
        "_upsample_nearest_exact2d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
    )
    return {f"aten.{name}.{kind}": Resize(name) for name in names for kind in ("default", "vec")}
