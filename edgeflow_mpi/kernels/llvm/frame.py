"""Frames: what a computation depends on, as 64-bit integers in memory; and its stages.

Code is made once for all shapes: addresses, sizes and counts stand in a frame, of which the
code gets the address. A stage is a number of independent items. Threads take them from a
counter in the frame, so that it does not matter how many threads there are or who is faster.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from llvmlite import ir

from edgeflow_mpi.kernels.llvm.emit import I64, POINTER, Function, Value

SHARED: Final = ("threads", "parallel", "items", "next", "begun")
"""Fields of every frame: threads, and the address of GOMP_parallel; items of the present stage,
the next item, and threads that have begun, which the code writes."""


class Frame:
    """The fields of a frame, as values of a function that has its address.

    A field is read once, where it is first asked for: ask at the start of a function for all
    that it reads anywhere (:meth:`read`).
    """

    def __init__(self, f: Function, pointer: Value, fields: Sequence[str]) -> None:
        self._f = f
        self._fields = fields
        self.pointer = pointer

    def __getattr__(self, name: str) -> Value:
        value = self._f.builder.load(self._place(name), typ=I64)
        setattr(self, name, value)
        return value

    def _place(self, name: str) -> Value:
        index = self._f.integer(self._fields.index(name))
        return self._f.builder.gep(self.pointer, [index], source_etype=I64)

    def read(self, *names: str) -> None:
        """Read fields here, so that they are there in every block that follows."""
        for name in names:
            getattr(self, name)

    def write(self, name: str, value: Value) -> None:
        self._f.builder.store(self._f.integer(value), self._place(name))

    def take(self, name: str) -> Value:
        """The counter's value, which grows by one for whoever comes next."""
        place = self._place(name)
        return self._f.builder.atomic_rmw("add", place, self._f.integer(1), "monotonic")

    @contextmanager
    def taken(self) -> Iterator[tuple[Value, Value]]:
        """(item, number of this thread) for every item that this thread gets."""
        f, b = self._f, self._f.builder
        thread = self.take("begun")
        head, body, end = (b.append_basic_block(name) for name in ("take", "item", "none"))
        b.branch(head)
        b.position_at_end(head)
        item = self.take("next")
        b.cbranch(f.less(item, self.items), body, end)
        b.position_at_end(body)
        yield item, thread
        b.branch(head)
        b.position_at_end(end)

    def run(self, stage: Value, items: Value) -> None:
        """Call a function of a frame's address that does all :meth:`taken` items.

        The threads of OpenMP do it where there are several of them, and items.
        """
        f, b = self._f, self._f.builder
        self.write("items", items)
        self.write("next", 0)
        self.write("begun", 0)
        several = b.and_(f.less(1, self.threads), f.less(1, items))
        with b.if_else(several) as (threaded, alone):
            with threaded:
                i32 = ir.IntType(32)
                kind = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, i32, i32])
                parallel = b.inttoptr(self.parallel, kind.as_pointer())
                b.call(parallel, [stage, self.pointer, b.trunc(self.threads, i32), i32(0)])
            with alone:
                b.call(stage, [self.pointer])


def filled(fields: Sequence[str], values: Mapping[str, int]) -> array[int]:
    """A frame in memory; fields without a value are 0.

    Raises
    ------
    KeyError
        If there is no such field.
    """
    for name in values:
        if name not in fields:
            raise KeyError(name)
    return array("q", (values.get(name, 0) for name in fields))
