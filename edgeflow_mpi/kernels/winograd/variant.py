"""Minimal filtering along height and width, and what is left of it at the edges of a map."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeflow_mpi.kernels.winograd.points import Filtering, part


@dataclass(frozen=True)
class Variant:
    """The minimal filtering along height and width."""

    height: Filtering
    width: Filtering

    @property
    def products(self) -> int:
        return self.height.products * self.width.products

    def filter(self) -> torch.Tensor:
        """What the taps of a filter are multiplied with: products × taps, float64."""
        height, width = (
            torch.tensor([[float(c) for c in row] for row in f.filter], dtype=torch.float64)
            for f in (self.height, self.width)
        )
        return torch.kron(height, width)

    def part(self, rows: int, columns: int) -> Variant:
        """Tiles of so many results, no more than a whole one's, by some of its products."""
        return Variant(part(self.height, rows), part(self.width, columns))

    def at_edges(self, rows: int, columns: int) -> Variant:
        """What is left for the last tiles of a map of so many rows and columns."""
        high, wide = self.height.results, self.width.results
        return self.part(rows % high or high, columns % wide or wide)

    def __str__(self) -> str:
        h, w = self.height, self.width
        return f"F({h.results}x{w.results}, {h.taps}x{w.taps})"
