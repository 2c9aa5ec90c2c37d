"""Depthwise convolutions and pools as an engine: code is made by LLVM, where llvmlite is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.llvm.available import available
from edgeflow_mpi.kernels.steps import assemble_fused
from edgeflow_mpi.spans import Span

_TARGETS = ("aten.conv2d", "aten.max_pool2d.default", "aten.avg_pool2d.default")
_JOIN = "aten.cat.default"
_SUMS = ("aten.sum.dim_IntList", "aten.mul.Scalar")


class Channelwise:
    """Layers with a depthwise convolution or a pool, also of all pixels, or maps side by side."""

    name = "channelwise"

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
        targets = [step.target for step in layer.steps]
        if targets and targets[0] in _SUMS:
            from edgeflow_mpi.kernels.channelwise.summands import fused_factor, summand

            if layer.combine or targets == [_SUMS[0]]:
                return summand(graph, layer, rows, needs, self.name)
            return assemble_fused(self.name, graph, layer, rows, weights, needs, fused_factor)
        if targets == [_JOIN]:
            from edgeflow_mpi.kernels.channelwise.join import fused_join

            return assemble_fused(self.name, graph, layer, rows, weights, needs, fused_join)
        if not any(target.startswith(_TARGETS) for target in targets):
            return None
        from edgeflow_mpi.kernels.channelwise.fuse import fused_windows

        return assemble_fused(self.name, graph, layer, rows, weights, needs, fused_windows)
