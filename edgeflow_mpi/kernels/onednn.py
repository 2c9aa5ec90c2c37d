"""Convolution with bias, activation and residual sum as one oneDNN call, where torch has it.

torch keeps these operators for its own compiler: weights are packed once, and the
activation costs no pass over memory. Where they are missing (another build or processor)
the caller falls back to plain ATen.

With products of bfloat16, maps are rounded on their way in and widened on their way out: that
pays where a processor multiplies such numbers much faster than others.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import Convolution
from edgeflow_mpi.graph.types import Arg, Graph, Layer, Ref, Step, Var, Weight
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.kept import keep
from edgeflow_mpi.kernels.steps import Fused, assemble_fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor


class OneDnn:
    """Layers with a convolution: that, and what can follow it, in one call, the rest by ATen."""

    name = "onednn"

    def available(self) -> bool:
        return _available()

    def prepare(
        self, graph: Graph, layer: Layer, rows: Span, weights: Mapping[str, Tensor], needs: Needs
    ) -> Kernel | None:
        return assemble_fused(self.name, graph, layer, rows, weights, needs, fused_convolution)


class OneDnnBf16:
    """The same with products of bfloat16, summed in float32: only where that is asked for."""

    name = "onednn-bf16"

    def available(self) -> bool:
        return _multiplies_bfloat16() and _available()

    def prepare(
        self, graph: Graph, layer: Layer, rows: Span, weights: Mapping[str, Tensor], needs: Needs
    ) -> Kernel | None:
        fuse = partial(fused_convolution, dtype=torch.bfloat16)
        return assemble_fused(self.name, graph, layer, rows, weights, needs, fuse)


def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it: emulated, it is slower than float32."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        if platform.machine() not in ("x86_64", "AMD64"):
            return True  # elsewhere oneDNN is asked for the instructions
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except (AttributeError, RuntimeError):
        return False


def _available() -> bool:
    """Whether this torch has fused oneDNN convolutions that work on this processor."""
    if not torch._C._has_mkldnn:
        return False
    try:
        pack = torch.ops.mkldnn._reorder_convolution_weight
        kernel = pack(torch.ones(8, 8, 1, 1), [0, 0], [1, 1], [1, 1], 1, [1, 8, 4, 4])
        image = torch.ones(1, 8, 4, 4).to(memory_format=torch.channels_last)
        made = torch.ops.mkldnn._convolution_pointwise.default(
            image, kernel, None, [0, 0], [1, 1], [1, 1], 1, "relu", [], None
        )
        return bool((made == 8).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _activation(args: Mapping[str, Arg], target: str) -> tuple[str, list[object], object] | None:
    """oneDNN's name, scalars and algorithm for a pointwise operator."""
    match target:
        case "aten.relu.default":
            return "relu", [], None
        case "aten.silu.default":
            return "swish", [], None
        case "aten.hardswish.default":
            return "hardswish", [], None
        case "aten.sigmoid.default":
            return "sigmoid", [], None
        case "aten.tanh.default":
            return "tanh", [], None
        case "aten.hardtanh.default":
            return "hardtanh", [args["min_val"], args["max_val"]], None
        case "aten.leaky_relu.default":
            return "leaky_relu", [args["negative_slope"]], None
        case "aten.gelu.default":
            return "gelu", [], args["approximate"]
        case _:
            return None


def fused_convolution(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> Fused | None:
    """Step ``j`` and what follows it as one call, if ``j`` is a two-dimensional convolution.

    ``rows`` are the rows that step ``j`` makes; ``dtype`` is what is multiplied. Followers are
    fused while each is the only reader of the one before: first a residual sum, then an
    activation.
    """
    call = calls[j]
    rule = rule_for(call.step.target)
    if not isinstance(rule, Convolution) or rule.ndim != 2:
        return None
    if rule.axis(call) != 2 or call.out.axis != 2 or call.out.dtype != "float32":
        return None
    padding, outer = rule.geometry(call, rows)
    height = rule.needs(call, rows)[0].rows + outer[-2] + outer[-1]
    width = call.operands[0].shape[3] + outer[0] + outer[1]

    def follower(index: int) -> Step | None:
        after = index + 1
        readers = sum(step.refs.count(Var(index)) for step in steps)
        if after < len(steps) and readers == 1 and Var(index) in steps[after].refs:
            return steps[after]
        return None

    last, refs = j, call.step.refs
    other: Ref | None = None
    sum_step = follower(j)
    if sum_step is not None and sum_step.target == "aten.add.Tensor":
        operands = [ref for ref in sum_step.refs if ref != Var(j)]
        # The operator adds equal pieces only: nothing is broadcast, cut or converted.
        kind = (call.out.shape, call.out.dtype, call.out.axis)
        same = [s for s in calls[j + 1].operands if (s.shape, s.dtype, s.axis) == kind]
        if len(operands) == 1 and len(same) == 2 and dict(sum_step.args).get("alpha", 1) == 1:
            other, last = operands[0], j + 1
            refs = (*refs, other)
    name, algorithm = "none", None  # type: str, object
    scalars: list[object] = []
    next_step = follower(last)
    if next_step is not None and len(next_step.refs) == 1:
        known = _activation(dict(next_step.args), next_step.target)
        # oneDNN's binary form takes a ReLU only.
        if known is not None and (other is None or known[0] == "relu"):
            name, scalars, algorithm = known
            last += 1
    convolution = _Convolution(call, padding, outer, (height, width))
    compute = _packed(convolution, weights, name, scalars, algorithm, other is not None, dtype)
    return Fused(compute if dtype == torch.float32 else _rounded(compute, dtype), refs, last)


def _rounded(compute: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """``compute`` on tensors of ``dtype``, for operands and results in float32."""

    def run(*operands: Tensor) -> Tensor:
        return compute(*(operand.to(dtype) for operand in operands)).float()

    return run


@dataclass(frozen=True)
class _Convolution:
    """One convolution of a span: padding by oneDNN, padding by hand, padded map size."""

    call: Call
    padding: list[int]
    outer: list[int]
    size: tuple[int, int]


def _packed(
    convolution: _Convolution,
    weights: Mapping[str, Tensor],
    name: str,
    scalars: list[object],
    algorithm: object,
    binary: bool,
    dtype: torch.dtype,
) -> Callable[..., Tensor]:
    call, padding, outer = convolution.call, convolution.padding, convolution.outer
    weight_arg, bias_arg = call.args["weight"], call.args["bias"]
    assert isinstance(weight_arg, Weight)
    weight = weights[weight_arg.name].to(dtype)
    bias = weights[bias_arg.name].to(dtype) if isinstance(bias_arg, Weight) else None
    stride, dilation = list(call.ints("stride", 2)), list(call.ints("dilation", 2))
    groups = call.integer("groups")
    size = [*call.operands[0].shape[:2], *convolution.size]
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, dilation, groups, size
    )
    keep(packed, weight.numel() * weight.element_size())
    operator: Any
    if binary:
        operator = torch.ops.mkldnn._convolution_pointwise.binary
        unary = "relu" if name == "relu" else None

        def joined(tensor: Tensor, other: Tensor) -> Tensor:
            if any(outer):
                tensor = torch.constant_pad_nd(tensor, outer, 0.0)
            result: Tensor = operator(
                tensor, other, packed, bias, padding, stride, dilation, groups,
                "add", 1.0, unary, [], None,
            )  # fmt: skip
            return result

        return joined
    operator = torch.ops.mkldnn._convolution_pointwise.default

    def alone(tensor: Tensor) -> Tensor:
        if any(outer):
            tensor = torch.constant_pad_nd(tensor, outer, 0.0)
        result: Tensor = operator(
            tensor, packed, bias, padding, stride, dilation, groups, name, scalars, algorithm
        )
        return result

    return alone
