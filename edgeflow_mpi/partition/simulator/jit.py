"""Compiled where numba is installed, plain Python where it is not: the same functions.

Functions marked with :func:`jit` read and write flat sequences by integer index and do little
else, so that they run compiled on arrays and, without numba, on lists, which plain Python reads
several times faster than arrays. Either way they do the same operations in the same order:
their answers are the same to the last bit.

Compiled code is kept in the user's cache folder, under a key of all the sources, since numba
itself does not notice when a function that another one calls has changed. Where nothing can
be kept (a read-only home), every process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from edgeflow_mpi.cache import private_folder

# By name, so that type checking says the same whether it is installed or not.
numba: Any = import_module("numba") if find_spec("numba") else None

Ints: TypeAlias = MutableSequence[int]
"""A flat array of 32-bit integers, or a list where nothing is compiled."""
Longs: TypeAlias = MutableSequence[int]
"""The same with 64 bits."""
Floats: TypeAlias = MutableSequence[float]
"""The same of 64-bit floating-point numbers."""

COMPILED = numba is not None and not numba.config.DISABLE_JIT
"""Whether kernels run compiled in this process (``NUMBA_DISABLE_JIT=1`` turns it off)."""

_SOURCES = ("simulator", "joint")
_Function = TypeVar("_Function", bound=Callable[..., object])


def ints(values: Iterable[int]) -> Ints:
    """Integers as kernels want them."""
    found: Ints = _array(np.int32, map(int, values))
    return found


def longs(values: Iterable[int]) -> Longs:
    """Integers of 64 bits as kernels want them."""
    found: Longs = _array(np.int64, map(int, values))
    return found


def floats(values: Iterable[float]) -> Floats:
    """Floating-point numbers as kernels want them."""
    found: Floats = _array(np.float64, map(float, values))
    return found


def _array(dtype: type[np.generic], values: Iterable[float]) -> Any:
    return np.array(list(values), dtype=dtype) if COMPILED else list(values)


def jit(function: _Function) -> _Function:
    """The function compiled when Python first calls it, or as it is where numba is missing."""
    if not COMPILED:
        return function
    usual = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = _FOLDER
        return _compiled(function, cache=bool(_FOLDER))
    finally:
        numba.config.CACHE_DIR = usual


def is_kept(function: Callable[..., object]) -> bool:
    """Whether an earlier process has left the compiled code of a :func:`jit` function.

    Of the same file, that is: numba keeps code by its path as well.
    """
    module = function.__module__.rpartition(".")[2]
    pattern = f"{module}.{function.__name__}-*.nbi"
    stats: Any = getattr(function, "stats", None)
    folder: str = "" if stats is None else stats.cache_path or ""
    return bool(folder) and any(Path(folder).glob(pattern))


def part(function: _Function) -> _Function:
    """A function that only compiled ones call."""
    return _compiled(function, no_cpython_wrapper=True) if COMPILED else function


def inlined(function: _Function) -> _Function:
    """A function that becomes part of every compiled one that calls it.

    Handing tens of arrays to a function takes longer than what most of ours do.
    """
    if not COMPILED:
        return function
    return _compiled(function, no_cpython_wrapper=True, forceinline=True)


def _compiled(function: _Function, **options: object) -> _Function:
    # Nothing here makes an array, so nothing counts references to them: that alone would take
    # ten times as long as the work.
    made: _Function = numba.njit(error_model="numpy", no_cfunc_wrapper=True, _nrt=False, **options)(
        function
    )
    return made


def _cache_folder() -> str:
    """Where what was compiled from exactly these sources is kept; empty if nowhere."""
    folders = [Path(__file__).parents[1] / part for part in _SOURCES]
    sources = [path for folder in folders for path in folder.glob("*.py")]
    return str(private_folder("kernels", sources) or "")


_FOLDER = _cache_folder() if COMPILED else ""
