"""The matrices of minimal filtering as few operations on vectors of channels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from edgeflow_mpi.kernels.llvm.emit import Function, Value
from edgeflow_mpi.kernels.winograd.points import Filtering


def input_transform(f: Function, filtering: Filtering, samples: Sequence[Value]) -> list[Value]:
    """B^T d. The rows of a pair of points are sum and difference of an even and an odd part."""
    if filtering.products == 1:
        return list(samples)
    rows = filtering.input
    made = [_combination(f, rows[0], samples)] if filtering.zero else []
    for k in range(len(made), len(rows) - 1, 2):
        even = [c if column % 2 == 0 else Fraction(0) for column, c in enumerate(rows[k])]
        odd = [c if column % 2 == 1 else Fraction(0) for column, c in enumerate(rows[k])]
        # The highest odd coefficient is the point itself: taken out, it costs nothing more.
        factor = next(c for c in reversed(odd) if c)
        rest = _combination(f, [c / factor for c in odd], samples)
        base = _combination(f, even, samples)
        made.append(f.fma(f.constant(factor), rest, base))
        made.append(f.fma(f.constant(-factor), rest, base))
    made.append(_combination(f, rows[-1], samples))
    return made


def output_transform(f: Function, filtering: Filtering, products: Sequence[Value]) -> list[Value]:
    """A^T v. Even powers of a pair of points need the sum of its products, odd ones the rest."""
    if filtering.products == 1:
        return list(products)
    alone = 1 if filtering.zero else 0
    sums, differences = list(products[:alone]), list(products[:alone])
    for k in range(alone, len(products) - 1, 2):
        sums.append(f.builder.fadd(products[k], products[k + 1]))
        differences.append(f.builder.fsub(products[k], products[k + 1]))
    made = []
    for power, row in enumerate(filtering.output):
        terms = [*(sums if power % 2 == 0 else differences), products[-1]]
        coefficients = [*row[:alone], *row[alone:-1:2], row[-1]]
        made.append(_combination(f, coefficients, terms))
    return made


def _combination(f: Function, coefficients: Sequence[Fraction], values: Sequence[Value]) -> Value:
    """sum of c v, beginning with a term that needs no multiplication if there is one."""
    terms = [(c, v) for c, v in zip(coefficients, values, strict=True) if c]
    terms.sort(key=lambda term: term[0] != 1)
    (first, total), *others = terms
    if first != 1:
        total = f.builder.fmul(f.constant(first), total)
    for c, value in others:
        if c == 1:
            total = f.builder.fadd(total, value)
        elif c == -1:
            total = f.builder.fsub(total, value)
        else:
            total = f.fma(f.constant(c), value, total)
    return total
