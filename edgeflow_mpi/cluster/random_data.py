"""Random weights and inputs of a layer, on which its kernels are timed.

Times do not depend on the values, as long as they are ordinary numbers (denormals are slow,
zeros may be fast).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec
from edgeflow_mpi.kernels import buffers
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.native import alone
from edgeflow_mpi.spans import Span

_BLOCK = 1 << 16


@dataclass(frozen=True)
class PreparedCall:
    """A kernel and the inputs that it is called on."""

    run: Callable[[], torch.Tensor]
    inputs: tuple[torch.Tensor, ...]

    def __call__(self) -> torch.Tensor:
        return self.run()

    def fetch_inputs(self) -> None:
        """Have them in the caches, as far as they fit: in a job they were made just before.

        Without that a map of several megabytes, and those of other engines that are timed in turn,
        drive each other out: a pool then took three times as long as in a job, by any engine.
        """
        for tensor in self.inputs:
            tensor.as_strided((tensor.numel(),), (1,)).sum()


def prepared_call(graph: Graph, layer: Layer, kernel: Kernel) -> PreparedCall:
    """A call of the layer's kernel on random inputs of the rows that it needs.

    It is made as in a job: into memory that was there before and without Python, where the kernel
    can.
    """
    inputs = tuple(
        _random_input(graph.by_name[name], needed)
        for name, needed in zip(layer.inputs, kernel.needs, strict=True)
    )
    into = kernel.into
    if into is None:
        return PreparedCall(lambda: kernel(*inputs), inputs)
    out = buffers.empty(layer.out, 1 if layer.combine else kernel.rows.rows)

    bound = kernel.bind(out, *inputs) if kernel.bind is not None else None
    fill = partial(into, out, *inputs) if bound is None else alone(bound, (out, inputs))

    def run() -> torch.Tensor:
        fill()
        return out

    return PreparedCall(run, inputs)


def random_weights(graph: Graph, layer: Layer) -> dict[str, torch.Tensor]:
    return {name: _random_weight(graph.weight_specs[name]) for name in layer.weights}


def _random_weight(spec: TensorSpec) -> torch.Tensor:
    """Normal, scaled so that activations keep their size; vectors (variances!) positive."""
    tensor = _filled(torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)))
    if not tensor.is_floating_point():
        return tensor
    if tensor.ndim < 2:
        return tensor.abs_().add_(0.5)
    return tensor.mul_((tensor[0].numel() or 1) ** -0.5)


def _random_input(producer: Layer, needed: Span) -> torch.Tensor:
    # Of summands a kernel takes the combined whole.
    rows = producer.out.rows if producer.combine else needed.rows
    return _filled(buffers.empty(producer.out, rows))


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    """Normal numbers; zeros where the type has none (indices must stay in range).

    One block is drawn and repeated in memory, which is some ten times faster.
    """
    elements = tensor.numel()
    if not elements or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.zero_()
    block = torch.empty(min(elements, _BLOCK), dtype=tensor.dtype)
    block.normal_(generator=torch.Generator().manual_seed(0))
    memory = tensor.as_strided((elements,), (1,))  # dense, whatever the order of dimensions
    whole = elements - elements % len(block)
    memory[:whole].view(-1, len(block)).copy_(block)
    memory[whole:].copy_(block[: elements - whole])
    return tensor
