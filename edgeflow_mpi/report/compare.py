"""Whether an answer is right: the error it may have, and the error it has.

An answer is right where its largest error, relative to the largest magnitude of the
reference in float64, is at most ``max(1e-5, 4 e)``; ``e`` is the same error of plain torch,
which no way of dividing the work can be expected to beat. Where activations travel or are
multiplied in a narrower type, its rounding is allowed as well, amplified as much as the model
amplifies that of float32: ``eps_wire * e / eps_32``, and at least ``8 eps_wire``. Each tensor is
measured against its own magnitude, so a small output is not hidden by a large one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeflow_mpi.report.results import Difference, LayerComparison, Verification, worst

LEAST_TOLERANCE = 1e-5
PLAIN_ERRORS = 4
WIRE_ERRORS = 8


@dataclass(frozen=True)
class _Error:
    absolute: float
    relative: float


def compare_tensor(
    name: str,
    got: torch.Tensor,
    reference64: torch.Tensor,
    plain32: torch.Tensor,
    wire: torch.dtype = torch.float32,
) -> Difference:
    """Compare one tensor with its reference.

    Parameters
    ----------
    name : str
        For the report.
    got : torch.Tensor
        What the ranks computed.
    reference64 : torch.Tensor
        The same by plain torch in float64; an integer or boolean where the model's is one.
    plain32 : torch.Tensor
        The same by plain torch in the model's own types.
    wire : torch.dtype
        The type to which float32 activations were rounded, to travel or to be multiplied.

    Returns
    -------
    Difference
        With a ``fault`` where shape or kind differ or a value is not finite: such a tensor
        never passes. A reference of nothing but zeros has no magnitude: the error is then
        taken as it is. Of integers and booleans the share of elements that differ is the
        error, and none may differ unless plain torch has some that do.
    """
    fault = _fault(got, reference64)
    if fault is not None:
        return Difference(name, float("nan"), float("nan"), float("nan"), LEAST_TOLERANCE, fault)
    error = _error(got, reference64)
    plain = 0.0 if _fault(plain32, reference64) else _error(plain32, reference64).relative
    counted = not _has_fractions(reference64)
    tolerance = max(0.0 if counted else LEAST_TOLERANCE, PLAIN_ERRORS * plain)
    if wire != torch.float32 and not counted:
        rounding = torch.finfo(wire).eps
        amplified = rounding * plain / torch.finfo(torch.float32).eps
        tolerance = max(tolerance, amplified, WIRE_ERRORS * rounding)
    return Difference(name, error.absolute, error.relative, plain, tolerance, counted=counted)


def compare_outputs(
    names: Sequence[str],
    got: Sequence[torch.Tensor],
    reference64: Sequence[torch.Tensor],
    plain32: Sequence[torch.Tensor],
    wire: torch.dtype = torch.float32,
) -> Verification:
    """Compare the outputs of one request; all four sequences are in the same order."""
    rows = zip(names, got, reference64, plain32, strict=True)
    return Verification(tuple(compare_tensor(*row, wire) for row in rows))


def compare_layers(
    order: Sequence[str],
    got: Mapping[str, torch.Tensor],
    reference64: Mapping[str, torch.Tensor],
    plain32: Mapping[str, torch.Tensor],
    wire: torch.dtype = torch.float32,
) -> LayerComparison:
    """Compare what every layer made, each by the rule for outputs.

    Parameters
    ----------
    order : sequence of str
        Layer names in a topological order, so that the first that differs is the culprit.
    got, reference64, plain32 : mapping of str to torch.Tensor
        Whole tensors by layer name. A layer that one of them lacks is listed as unmatched.
    wire : torch.dtype
        The type in which float32 activations travelled.
    """
    known = got.keys() & reference64.keys() & plain32.keys()
    return LayerComparison(
        tuple(
            compare_tensor(name, got[name], reference64[name], plain32[name], wire)
            for name in order
            if name in known
        ),
        tuple(name for name in order if name not in known),
    )


def combine(verifications: Sequence[Verification]) -> Verification:
    """One verification of several requests; a layer counts with the worst of them."""
    layers = [v.layers for v in verifications if v.layers is not None]
    return Verification(
        tuple(difference for v in verifications for difference in v.outputs),
        sum(v.requests for v in verifications),
        _combine_layers(layers) if layers else None,
    )


def _combine_layers(comparisons: Sequence[LayerComparison]) -> LayerComparison:
    by_name: dict[str, list[Difference]] = {}
    for comparison in comparisons:
        for difference in comparison.differences:
            by_name.setdefault(difference.name, []).append(difference)
    unmatched = dict.fromkeys(name for c in comparisons for name in c.unmatched)
    return LayerComparison(tuple(worst(found) for found in by_name.values()), tuple(unmatched))


def _fault(tensor: torch.Tensor, reference: torch.Tensor) -> str | None:
    """What is wrong with a tensor before any number is compared."""
    if tensor.shape != reference.shape:
        return f"its shape is {_size(tensor)}, not {_size(reference)}"
    if _has_fractions(tensor) != _has_fractions(reference):
        return f"its type is {tensor.dtype}, that of the reference {reference.dtype}"
    if not bool(torch.isfinite(reference).all()):
        return "the reference has values that are not finite"
    if not bool(torch.isfinite(tensor).all()):
        return "it has values that are not finite"
    return None


def _error(tensor: torch.Tensor, reference: torch.Tensor) -> _Error:
    """Error of a tensor without faults."""
    if reference.numel() == 0:
        return _Error(0.0, 0.0)
    if not _has_fractions(reference):
        differs = tensor != reference
        largest = float((_wide(tensor) - _wide(reference)).abs().max())
        return _Error(largest, float(differs.double().mean()))
    exact = _wide(reference)
    largest = float((_wide(tensor) - exact).abs().max())
    magnitude = float(exact.abs().max())
    return _Error(largest, largest / magnitude if magnitude else largest)


def _has_fractions(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"
