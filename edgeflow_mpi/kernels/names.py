"""Names that stand for engines; nothing heavy is imported with them."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT = "default"
"""In place of an engine's name: the first engine that can do a layer."""
AUTO = "auto"
"""In place of an engine's name: for every layer the one that was measured to be the fastest."""

ENGINES = (
    "winograd", "pointwise", "channelwise", "direct", "onednn", "ncnn", "onednn-bf16", "aten",
)  # fmt: skip
"""Those of :mod:`edgeflow_mpi.kernels.registry`, for a command line without torch."""

PRECISIONS: Mapping[str, tuple[str, ...]] = {"fp32": (), "bf16": ("onednn-bf16",)}
"""Names on the command line, and the engines that may compute only then: they round what they
multiply to a narrower type."""
NARROW = {engine: name for name, engines in PRECISIONS.items() for engine in engines}
"""Engine -> the precision that it needs."""
