"""Convolutions as they are defined, as an engine: code is made by LLVM, where llvmlite is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.llvm.available import available
from edgeflow_mpi.kernels.steps import assemble_fused
from edgeflow_mpi.spans import Span


class Direct:
    """Layers with a convolution of one group, or that are linear and not divided."""

    name = "direct"

    def available(self) -> bool:
        return available()

    def prepare(
        self,
        graph: Graph,
        layer: Layer,
        rows: Span,
        weights: Mapping[str, torch.Tensor],
        needs: Needs,
    ) -> Kernel | None:
        # Loading LLVM takes a tenth of a second: not before there is something to do.
        if not any(step.target.startswith(("aten.conv2d", "aten.linear")) for step in layer.steps):
            return None
        from edgeflow_mpi.kernels.direct.fuse import fused_convolution
        from edgeflow_mpi.kernels.direct.linear import fused_linear

        fuse = fused_linear if _is_linear(layer) else fused_convolution
        return assemble_fused(self.name, graph, layer, rows, weights, needs, fuse)


def _is_linear(layer: Layer) -> bool:
    return any(step.target.startswith("aten.linear") for step in layer.steps)
