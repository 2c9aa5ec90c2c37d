"""Kernels as calls of machine code with everything in place.

What a kernel reads and writes lies at the same addresses in every request. So what it tells its
code can be written down once, and running it is one call with one argument, which needs no Python.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch


@dataclass(frozen=True)
class NativeCall:
    """``function(address of frame)`` computes something, once the scratch memory is in place.

    Attributes
    ----------
    function : int
        Its address; it returns nothing and cannot fail.
    frame : array
        64-bit integers. It must not change its size, and is the call's alone.
    scratch : mapping of int to int
        Fields of the frame that hold addresses in scratch memory -> bytes from its start.
    scratch_floats : int
        So many float32 of scratch memory are needed.
    keeps : object
        What the frame's other addresses need to stay alive.
    """

    function: int
    frame: array[int]
    scratch: Mapping[int, int] = field(default_factory=dict)
    scratch_floats: int = 0
    keeps: object = None

    def place(self, address: int) -> None:
        """Use scratch memory that begins at ``address``."""
        for index, offset in self.scratch.items():
            self.frame[index] = address + offset


def alone(call: NativeCall, memory: object) -> Callable[[], None]:
    """A function that makes this one call; it keeps ``memory`` alive, which the call needs."""
    from edgeflow_mpi.kernels.llvm.memory import scratch

    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(call.function)
    kept = call, memory

    def run() -> None:
        made, _ = kept
        if made.scratch_floats:
            made.place(scratch(made.scratch_floats))
        function(made.frame.buffer_info()[0])

    return run


Bind: TypeAlias = Callable[..., NativeCall | None]
"""(out, *inputs) -> the call that fills ``out`` from what is in the inputs' memory when it runs.

The tensors' memory must outlive it. None where something would have to be copied or converted
first."""


def held_alike(tensor: torch.Tensor, inner: tuple[int, ...]) -> bool:
    """Whether images have these strides, or others that mean the same."""
    return tensor.stride()[1:] == inner or tensor.is_contiguous(memory_format=torch.channels_last)
