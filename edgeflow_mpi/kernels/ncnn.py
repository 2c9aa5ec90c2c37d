"""Convolutions by ncnn, where its package is installed: a network of one layer for each.

ncnn keeps channels apart, so maps are reordered on their way in and out; that is part of what
is measured. Nothing is computed in a narrower type than float32.

References
----------
.. [1] ncnn, param and model file structure,
   https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import Convolution
from edgeflow_mpi.graph.types import Graph, Layer, Step, Weight
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.epilogue import Epilogue, epilogue
from edgeflow_mpi.kernels.kept import keep
from edgeflow_mpi.kernels.steps import Fused, assemble_fused
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor

_RELU, _CLIP = 1, 3
_RAW = b"\0\0\0\0"  # what follows are float32


class Ncnn:
    """Layers with a dense convolution of one image."""

    name = "ncnn"

    def available(self) -> bool:
        if find_spec("ncnn") is None:
            return False
        try:
            import ncnn
        except (ImportError, OSError):
            return False
        return hasattr(ncnn.Net, "load_model_mem")

    def prepare(
        self, graph: Graph, layer: Layer, rows: Span, weights: Mapping[str, Tensor], needs: Needs
    ) -> Kernel | None:
        return assemble_fused(self.name, graph, layer, rows, weights, needs, fused_convolution)


def fused_convolution(
    steps: Sequence[Step],
    calls: Sequence[Call],
    j: int,
    rows: Span,
    weights: Mapping[str, Tensor],
) -> Fused | None:
    """Step ``j`` with a residual sum and bounds behind it, if ``j`` is such a convolution.

    ``rows`` are the rows that step ``j`` makes.
    """
    call = calls[j]
    rule = rule_for(call.step.target)
    if not isinstance(rule, Convolution) or not _plain(rule, call):
        return None
    padding, outer = rule.geometry(call, rows)
    if min(outer) < 0:
        return None
    left, right, above, below = (
        outside + padding[1 - i // 2] for i, outside in enumerate(outer)
    )  # constant_pad_nd names the last dimension first
    weight_arg, bias_arg = call.args["weight"], call.args["bias"]
    assert isinstance(weight_arg, Weight)
    weight = weights[weight_arg.name]
    bias = weights[bias_arg.name] if isinstance(bias_arg, Weight) else None
    behind = epilogue(steps, calls, j)
    strides, dilations = call.ints("stride", 2), call.ints("dilation", 2)
    (height, width) = weight.shape[2:]
    fields = {
        0: weight.shape[0], 1: width, 11: height, 2: dilations[1], 12: dilations[0],
        3: strides[1], 13: strides[0], 4: left, 15: right, 14: above, 16: below,
        5: int(bias is not None), 6: weight.numel(),
    }  # fmt: skip
    # A sum comes before the bounds, and ncnn does not know what is added.
    activation = _activation(behind) if behind.other is None else ""
    if activation is None:
        return None
    text = " ".join(f"{key}={value}" for key, value in fields.items())
    net = _Net(f"Convolution c 1 1 in out {text}{activation}", weight, bias)
    shape = (call.operands[0].shape[0], weight.shape[0], rows.rows, call.out.shape[3])
    into = _into(net, behind)

    def run(*operands: Tensor) -> Tensor:
        out = torch.empty(shape, memory_format=torch.channels_last)
        into(out, *operands)
        return out

    return Fused(run, behind.refs(call.step.refs), behind.last, into)


def _plain(rule: Convolution, call: Call) -> bool:
    """Whether it is a dense convolution of one float32 image, divided by rows."""
    if rule.ndim != 2 or rule.axis(call) != 2 or call.out.axis != 2:
        return False
    if call.out.dtype != "float32" or call.operands[0].dtype != "float32":
        return False
    return call.integer("groups") == 1 and call.operands[0].shape[0] == 1


def _activation(behind: Epilogue) -> str | None:
    """ncnn's parameters for the bounds; None where it has none for them."""
    if (behind.low, behind.high) == (-math.inf, math.inf):
        return ""
    if (behind.low, behind.high) == (0.0, math.inf):
        return f" 9={_RELU}"
    if math.isfinite(behind.low) and math.isfinite(behind.high):
        return f" 9={_CLIP} -23310=2,{behind.low:e},{behind.high:e}"
    return None


class _Net:
    """One layer. ncnn may read the weights where they are, so their memory is kept."""

    def __init__(self, layer: str, weight: Tensor, bias: Tensor | None) -> None:
        import ncnn

        self._mat = ncnn.Mat
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = torch.get_num_threads()
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        self._net.load_param_mem(f"7767517\n2 2\nInput in 0 1 in\n{layer}\n")
        self._memory = _RAW + _bytes(weight) + (b"" if bias is None else _bytes(bias))
        self._net.load_model_mem(self._memory)
        keep(self, len(self._memory))  # and what ncnn makes of it, which it does not tell

    def __call__(self, image: Tensor) -> Any:
        """The result's channels, as an array that lives as long as it is held."""
        planes = image.contiguous().numpy()
        extractor = self._net.create_extractor()
        extractor.input("in", self._mat(planes))
        return extractor.extract("out")[1].numpy()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def _into(net: _Net, behind: Epilogue) -> Callable[..., object]:
    def alone(out: Tensor, tensor: Tensor) -> None:
        out[0].copy_(torch.from_numpy(net(tensor[0])))

    def joined(out: Tensor, tensor: Tensor, other: Tensor) -> None:
        torch.add(torch.from_numpy(net(tensor[0])), other[0], out=out[0])
        if behind.low > -math.inf or behind.high < math.inf:
            out.clamp_(behind.low, behind.high)

    return alone if behind.other is None else joined
