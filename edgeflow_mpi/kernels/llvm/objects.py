"""Machine code: made when first wanted, kept between jobs.

Making it takes some tenths of a second. It is kept in the user's cache folder, under a key of
everything that it is made from; what does not load is made again.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding

from edgeflow_mpi.cache import cache_path, private_folder, write_atomic
from edgeflow_mpi.kernels.llvm.machine import Machine

_alive: list[object] = []
"""Code is unloaded when its tracker goes: these never go."""
_numbers = count()
"""No name may be used twice, not even one that did not load."""


class Entry:
    """A function of the address of a frame, by its own ``address``.

    ``run`` calls it.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self.run: Callable[[int], None] = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


@cache
def _linker() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.create_lljit_compiler()


def loaded(
    machine: Machine, what: str, emit: Callable[[], str], names: Sequence[str]
) -> tuple[int, ...]:
    """Addresses of functions of a module, from the cache folder or newly made.

    Parameters
    ----------
    what : names the module among all that are made for this machine.
    emit : gives the module as text.

    Raises
    ------
    RuntimeError
        If LLVM cannot do it.
    """
    linker = _linker()
    folder = private_folder("native", Path(__file__).parents[1].rglob("*.py"))
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


def _link(linker: Any, image: bytes, what: str, names: Sequence[str]) -> tuple[int, ...]:
    library = binding.JITLibraryBuilder().add_object_img(image).add_current_process()
    for name in names:
        library.export_symbol(name)
    tracker = library.link(linker, f"{what} {next(_numbers)}")
    _alive.append(tracker)
    return tuple(int(tracker[name]) for name in names)
