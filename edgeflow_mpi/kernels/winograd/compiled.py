"""Machine code of convolutions: made when first wanted, kept between jobs.

Making it takes some tenths of a second. It is kept in the user's cache folder, under a key of
everything that it is made from; what does not load is made again.
"""

from __future__ import annotations

import contextlib
import ctypes
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding, ir

from edgeflow_mpi.cache import cache_path, private_folder, write_atomic
from edgeflow_mpi.kernels.winograd.code import ENTRY, Variant, emit_convolution
from edgeflow_mpi.kernels.winograd.emit import Machine
from edgeflow_mpi.kernels.winograd.gemm import emit_gemm, gemm_name


@dataclass(frozen=True)
class Code:
    """A convolution's machine code.

    Attributes
    ----------
    run : callable
        Of the address of a frame (see :data:`edgeflow_mpi.kernels.winograd.code.FIELDS`).
    gemms_address : int
        The frame's table of gemm functions.
    """

    run: Callable[[int], None]
    gemms_address: int


@cache
def code(machine: Machine, variant: Variant) -> Code | None:
    """The code of one variant, made on the first call in this process; None if LLVM fails."""
    try:
        gemms = _gemms(machine)
        (entry,) = _loaded(
            machine, str(variant), lambda: emit_convolution(machine, variant), [ENTRY]
        )
    except RuntimeError:
        return None
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)
    return Code(function, gemms.buffer_info()[0])


@cache
def native() -> Machine | None:
    """What this processor is to the code, if anything: it must have fused multiply-add."""
    features = binding.get_host_cpu_features()
    cpu, described = binding.get_host_cpu_name(), features.flatten()
    return suited(cpu, described, frozenset(name for name, there in features.items() if there))


def suited(cpu: str, described: str, features: frozenset[str]) -> Machine | None:
    """The machine of a processor with these features, by LLVM's names of them."""
    if {"avx512f", "avx512vl"} <= features:
        return Machine(cpu, described, lanes=16, panel_vectors=2, panel_tiles=10)
    if {"avx2", "fma"} <= features:
        return Machine(cpu, described, lanes=8, panel_vectors=2, panel_tiles=6)
    if "neon" in features:
        return Machine(cpu, described, lanes=4, panel_vectors=4, panel_tiles=6)
    return None


@cache
def _gemms(machine: Machine) -> array[int]:
    """Addresses of the gemm functions by their number of tiles; there is none for 0 tiles."""

    def emit() -> str:
        module = ir.Module(name="gemm")
        for tiles in range(1, machine.panel_tiles + 1):
            emit_gemm(module, machine, tiles)
        return str(module)

    names = [gemm_name(tiles) for tiles in range(1, machine.panel_tiles + 1)]
    return array("q", [0, *_loaded(machine, "gemm", emit, names)])


_alive: list[object] = []
"""Code is unloaded when its tracker goes: these never go."""
_numbers = count()
"""No name may be used twice, not even one that did not load."""


@cache
def _linker() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.create_lljit_compiler()


def _loaded(
    machine: Machine, what: str, emit: Callable[[], str], names: list[str]
) -> tuple[int, ...]:
    """Addresses of functions of a module, from the cache folder or newly made."""
    linker = _linker()
    folder = private_folder("winograd", Path(__file__).parent.glob("*.py"))
    place = None
    if folder is not None:
        key = (llvmlite.__version__, machine, what)
        place = cache_path(folder, "objects", key, ".o")
        try:
            return _link(linker, place.read_bytes(), what, names)
        except (OSError, RuntimeError):
            pass
    made = _compile(machine, emit())
    if place is not None:
        with contextlib.suppress(OSError):
            write_atomic(place, made)
    return _link(linker, made, what, names)


def _compile(machine: Machine, module: str) -> bytes:
    target = binding.Target.from_triple(binding.get_process_triple())
    generator = target.create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=3, reloc="pic", codemodel="small"
    )
    parsed = binding.parse_assembly(module)
    parsed.triple = binding.get_process_triple()
    parsed.verify()
    # Everything is unrolled and vectorised as it should be.
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = tuning.loop_vectorization = tuning.slp_vectorization = False
    passes = binding.create_pass_builder(generator, tuning)
    passes.getModulePassManager().run(parsed, passes)
    made: bytes = generator.emit_object(parsed)
    return made


def _link(linker: Any, image: bytes, what: str, names: list[str]) -> tuple[int, ...]:
    library = binding.JITLibraryBuilder().add_object_img(image).add_current_process()
    for name in names:
        library.export_symbol(name)
    tracker = library.link(linker, f"{what} {next(_numbers)}")
    _alive.append(tracker)
    return tuple(int(tracker[name]) for name in names)
