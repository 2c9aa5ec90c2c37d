"""The engine of last resort: plain ATen calls do everything that torch does."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.engine import Kernel
from edgeflow_mpi.kernels.steps import assemble
from edgeflow_mpi.spans import Span


class Aten:
    """Every layer, one ATen call a step."""

    name = "aten"

    def available(self) -> bool:
        return True

    def prepare(
        self,
        graph: Graph,
        layer: Layer,
        rows: Span,
        weights: Mapping[str, torch.Tensor],
        needs: Needs,
    ) -> Kernel:
        """Never None.

        Raises
        ------
        ModelError
            If an operator is not in this build of torch.
        """
        return assemble(self.name, graph, layer, rows, weights, needs)
