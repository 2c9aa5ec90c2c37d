"""Names that stand for engines; nothing heavy is imported with them."""

from __future__ import annotations

DEFAULT = "default"
"""In place of an engine's name: the first engine that can do a layer."""
AUTO = "auto"
"""In place of an engine's name: for every layer the one that was measured to be the fastest."""

ENGINES = ("winograd", "pointwise", "channelwise", "direct", "onednn", "aten")
"""Those of :mod:`edgeflow_mpi.kernels.registry`, for a command line without torch."""
