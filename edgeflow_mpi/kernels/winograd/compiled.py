"""The functions of a convolution, made on first use."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from llvmlite import ir

from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.llvm.objects import loaded
from edgeflow_mpi.kernels.winograd.code import ENTRY, Variant, emit_convolution
from edgeflow_mpi.kernels.winograd.gemm import emit_gemm, gemm_name


@dataclass(frozen=True)
class Code:
    """A convolution's machine code.

    Attributes
    ----------
    run : callable
        Of the address of a frame (see :data:`edgeflow_mpi.kernels.winograd.code.FIELDS`).
    address : int
        That function's.
    gemms_address : int
        The frame's table of gemm functions.
    """

    run: Callable[[int], None]
    address: int
    gemms_address: int


@cache
def code(machine: Machine, variant: Variant) -> Code | None:
    """The code of one variant, made on the first call in this process; None if LLVM fails."""
    try:
        gemms = _gemms(machine)
        (entry,) = loaded(
            machine, str(variant), lambda: emit_convolution(machine, variant), [ENTRY]
        )
    except RuntimeError:
        return None
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)
    return Code(function, entry, gemms.buffer_info()[0])


@cache
def _gemms(machine: Machine) -> array[int]:
    """Addresses of the gemm functions by their number of tiles; there is none for 0 tiles."""

    def emit() -> str:
        module = ir.Module(name="gemm")
        for tiles in range(1, machine.panel_tiles + 1):
            emit_gemm(module, machine, tiles)
        return str(module)

    names = [gemm_name(tiles) for tiles in range(1, machine.panel_tiles + 1)]
    return array("q", [0, *loaded(machine, "gemm", emit, names)])
