"""Code that makes one channels-last map of another: its frame, filled for the maps of a call."""

from __future__ import annotations

from array import array

import torch

from edgeflow_mpi.kernels.llvm.memory import (
    dense,
    inner_strides,
    pixel_step,
    scratch,
)
from edgeflow_mpi.kernels.llvm.objects import Entry
from edgeflow_mpi.kernels.native import NativeCall, held_alike

Tensor = torch.Tensor


class MapCode:
    """A frame that begins with the addresses and steps of the map that is read, the one that is
    made and one that is added, in the order of :func:`_fill`.

    Images may lie apart from each other. The image that is read must be dense, what is added and
    what is made may be some channels of larger maps. It must not be run by two threads at a time,
    since both would write to its frame.

    Parameters
    ----------
    code, frame : what to run, and the values that are the same for all maps.
    size, out_size : (images, height, width, channels) of the map that is read, and made.
    scratch_floats, scratch_field : how much scratch it takes, and where the frame has its address.
    """

    def __init__(
        self, code: Entry, frame: array[int], size: tuple[int, ...], out_size: tuple[int, ...],
        scratch_floats: int, scratch_field: int,
    ) -> None:  # fmt: skip
        self._code, self._frame = code, frame
        self._inner, self._out_inner = inner_strides(*size[1:]), inner_strides(*out_size[1:])
        self._out_size = out_size
        self._scratch, self._scratch_field = scratch_floats, scratch_field

    def run(self, tensor: Tensor, other: Tensor | None = None) -> Tensor:
        """A new map."""
        out = torch.empty(self._out_size).permute(0, 3, 1, 2)
        self.into(out, tensor, other)
        return out

    def into(self, out: Tensor, tensor: Tensor, other: Tensor | None = None) -> None:
        """Fill ``out``, which shares no memory with an input."""
        inner = self._out_inner
        out_pixel = inner[2] if out.stride()[1:] == inner else pixel_step(out)
        if not out_pixel:
            out.copy_(self.run(tensor, other))
            return
        if tensor.stride()[1:] != self._inner:
            tensor = dense(tensor)
        other_pixel = 0
        if other is not None:
            other_pixel = inner[2] if other.stride()[1:] == inner else pixel_step(other)
            if not other_pixel:
                other = dense(other)
                other_pixel = pixel_step(other)
        _fill(self._frame, out, out_pixel, tensor, other, other_pixel)
        if self._scratch:
            self._frame[self._scratch_field] = scratch(self._scratch)
        self._code.run(self._frame.buffer_info()[0])

    def bind(self, out: Tensor, tensor: Tensor, other: Tensor | None = None) -> NativeCall | None:
        """The call that does what :meth:`into` would."""
        out_pixel = pixel_step(out)
        other_pixel = pixel_step(other) if other is not None else 1
        if not (out_pixel and other_pixel and held_alike(tensor, self._inner)):
            return None
        frame = self._frame[:]
        _fill(frame, out, out_pixel, tensor, other, other_pixel)
        places = {self._scratch_field: 0} if self._scratch else {}
        return NativeCall(self._code.address, frame, places, self._scratch, self)


def _fill(
    frame: array[int], out: Tensor, out_pixel: int, tensor: Tensor, other: Tensor | None,
    other_pixel: int,
) -> None:  # fmt: skip
    frame[0] = tensor.data_ptr()
    frame[1] = tensor.stride(0)
    frame[2] = out.data_ptr()
    frame[3] = out.stride(0)
    frame[4] = 0
    frame[6] = out_pixel
    if other is not None:
        frame[4] = other.data_ptr()
        frame[5] = other.stride(0)
        frame[7] = other_pixel
