"""Whether code can be made here: known without loading LLVM where it is not installed."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def available() -> bool:
    """Whether llvmlite is there and knows this processor."""
    if find_spec("llvmlite") is None:
        return False
    try:
        from edgeflow_mpi.kernels.llvm.machine import native
    except (ImportError, OSError):
        return False
    return native() is not None
