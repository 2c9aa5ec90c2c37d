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
from edgeflow_mpi.kernels.winograd.code import ENTRY, emit_convolution
from edgeflow_mpi.kernels.winograd.gemm import emit_gemm, gemm_name
from edgeflow_mpi.kernels.winograd.tiles import READ, WRITE, emit_tiles
from edgeflow_mpi.kernels.winograd.variant import Variant


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
    reads, writes : array
        The frame's tables of functions by kinds of tiles.
    """

    run: Callable[[int], None]
    address: int
    gemms_address: int
    reads: array[int]
    writes: array[int]


@cache
def code(machine: Machine, variant: Variant, edges: Variant) -> Code | None:
    """The code of one variant, made on the first call in this process; None if LLVM fails.

    ``edges`` is the variant's part that is left for the last tiles (:meth:`Variant.at_edges`).
    """
    rows, columns = edges.height.results, edges.width.results
    high, wide = variant.height.results, variant.width.results
    try:
        function, entry = _convolution(machine)
        gemms = _gemms(machine)
        kinds = [
            _tiles(machine, variant, variant.part(*results))
            for results in ((high, columns), (high, wide), (rows, wide), (rows, columns))
        ]
    except RuntimeError:
        return None
    reads, writes, adds = zip(*kinds, strict=True)
    return Code(
        function, entry, gemms.buffer_info()[0], array("q", reads), array("q", (*writes, *adds))
    )


@cache
def _convolution(machine: Machine) -> tuple[Callable[[int], None], int]:
    (entry,) = loaded(machine, "winograd", lambda: emit_convolution(machine), [ENTRY])
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry), entry


@cache
def _tiles(machine: Machine, variant: Variant, tiles: Variant) -> tuple[int, ...]:
    """Addresses of what reads tiles, writes results, and adds to results."""
    what = str(variant) if tiles == variant else f"{tiles} of {variant}"
    return loaded(machine, what, lambda: emit_tiles(machine, variant, tiles), [READ, *WRITE])


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
