"""What is read between calls: little, or all that the shared cache holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_profile_measure import conv_graph

from edgeflow_mpi.cluster.cooling import Cooling, shared_cache_bytes
from edgeflow_mpi.graph.tail import weight_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("sizes", "found"),
    [(["48K", "2048K", "32M"], 32 * MIB), (["512K", "what"], MIB // 2), ([], 0)],
    ids=["three-levels", "unreadable", "unknown"],
)
def test_the_largest_cache_is_found(tmp_path: Path, sizes: list[str], found: int) -> None:
    for level, size in enumerate(sizes):
        (tmp_path / f"index{level}").mkdir()
        (tmp_path / f"index{level}" / "size").write_text(f"{size}\n")
    assert shared_cache_bytes(tmp_path) == found


@pytest.mark.parametrize(
    ("shared", "light", "heavy"),
    [(0, 8, 8), (32 * MIB, 8, 40), (1024 * MIB, 8, 64)],
    ids=["unknown", "usual", "huge"],
)
def test_layers_with_many_weights_are_cooled_more(shared: int, light: int, heavy: int) -> None:
    cooling = Cooling(shared)
    # The sum of ones says how many numbers were read.
    for read, size in ((cooling.little(), light), (cooling.before_round(MIB)(), heavy)):
        assert isinstance(read, torch.Tensor)
        assert float(read) == size * MIB / 4
    assert cooling.before_round(MIB - 4)() is None


def test_weights_are_counted_in_bytes() -> None:
    graph = conv_graph()
    layer = next(layer for layer in graph.layers if layer.name == "conv")
    numbers = sum(math.prod(graph.weight_specs[name].shape) for name in layer.weights)
    assert weight_bytes(graph, layer) == 4 * numbers > 0
