"""Functions in LLVM's language: 64-bit integers, loops, and vectors of float32.

Addresses are integers of bytes, places are integers of float32. Everything is explicit and
already vectorised, so that the optimiser has only to tidy up and to give out registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

from llvmlite import ir

Value: TypeAlias = Any
"""A value of LLVM: an integer, a vector, or a pointer."""

I64 = ir.IntType(64)
F32 = ir.FloatType()
POINTER = ir.PointerType()
FLOAT_BYTES = 4


class Function:
    """A function under construction; instructions are added at its end.

    Its parameters, 64-bit integers or pointers, are in ``args``.
    """

    def __init__(
        self, module: Value, name: str, lanes: int, parameters: Sequence[Value], *, inner: bool
    ) -> None:
        self.ir = ir.Function(module, ir.FunctionType(ir.VoidType(), list(parameters)), name)
        self.ir.attributes.add("nounwind")
        if inner:
            self.ir.linkage = "internal"
        self.builder: Value = ir.IRBuilder(self.ir.append_basic_block())
        self.args: list[Value] = list(self.ir.args)
        self.lanes = lanes
        self.vector: Value = ir.VectorType(F32, lanes)

    def finish(self) -> Value:
        """Close the function and return it."""
        self.builder.ret_void()
        return self.ir

    # Integers

    def integer(self, value: Value) -> Value:
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, first: Value, *others: Value) -> Value:
        total = self.integer(first)
        for other in others:
            total = self.builder.add(total, self.integer(other))
        return total

    def sub(self, a: Value, b: Value) -> Value:
        return self.builder.sub(self.integer(a), self.integer(b))

    def mul(self, first: Value, *others: Value) -> Value:
        total = self.integer(first)
        for other in others:
            total = self.builder.mul(total, self.integer(other))
        return total

    def div(self, a: Value, b: Value) -> Value:
        """Of non-negative integers."""
        return self.builder.udiv(self.integer(a), self.integer(b))

    def ceil_div(self, a: Value, b: Value) -> Value:
        return self.div(self.sub(self.add(a, b), 1), b)

    def less(self, a: Value, b: Value) -> Value:
        return self.builder.icmp_signed("<", self.integer(a), self.integer(b))

    def least(self, a: Value, b: Value) -> Value:
        a, b = self.integer(a), self.integer(b)
        return self.builder.select(self.less(a, b), a, b)

    def most(self, a: Value, b: Value) -> Value:
        a, b = self.integer(a), self.integer(b)
        return self.builder.select(self.less(a, b), b, a)

    # Control

    @contextmanager
    def loop(self, stop: Value, step: Value = 1) -> Iterator[Value]:
        """Over 0, step, 2 step, ... below ``stop``; does nothing where there are none."""
        builder, before = self.builder, self.builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(self.integer(0), before)
        builder.cbranch(self.less(index, stop), body, end)
        builder.position_at_end(body)
        yield index
        index.add_incoming(self.add(index, step), builder.block)
        builder.branch(head)
        builder.position_at_end(end)

    @contextmanager
    def reduction(self, stop: Value, step: int, sums: Sequence[Value]) -> Iterator[Reduction]:
        """Like :meth:`loop`, at least once, with values that each turn replaces."""
        builder, before = self.builder, self.builder.block
        body, end = (builder.append_basic_block(name) for name in ("turn", "done"))
        builder.branch(body)
        builder.position_at_end(body)
        index = builder.phi(I64)
        index.add_incoming(self.integer(0), before)
        carried = [builder.phi(value.type) for value in sums]
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        state = Reduction(index, list(carried))
        yield state
        following = self.add(index, step)
        index.add_incoming(following, builder.block)
        for phi, value in zip(carried, state.sums, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(self.less(following, stop), body, end)
        builder.position_at_end(end)

    # Memory

    def pointer(self, address: Value) -> Value:
        return self.builder.inttoptr(address, POINTER)

    def at(self, base: Value, *places: Value) -> Value:
        """The pointer some float32 behind ``base``."""
        place = self.add(*places)
        return self.builder.gep(base, [place], source_etype=F32)

    def load(self, base: Value, *places: Value) -> Value:
        """The vector of float32 that begins there."""
        value = self.builder.load(self.at(base, *places), typ=self.vector)
        value.align = FLOAT_BYTES
        return value

    def store(self, value: Value, base: Value, *places: Value) -> None:
        self.builder.store(value, self.at(base, *places)).align = FLOAT_BYTES

    def prefetch(self, base: Value, *places: Value, write: bool = False) -> None:
        """Have the line of the cache that holds this float32 come near, for a later access."""
        i32 = ir.IntType(32)
        module = self.builder.module
        known = module.globals.get("llvm.prefetch.p0")
        if known is None:
            kind = ir.FunctionType(ir.VoidType(), [POINTER, i32, i32, i32])
            known = ir.Function(module, kind, "llvm.prefetch.p0")
        self.builder.call(known, [self.at(base, *places), i32(int(write)), i32(3), i32(1)])

    def everywhere(self, base: Value, *places: Value) -> Value:
        """One float32 of memory in all lanes."""
        value = self.builder.load(self.at(base, *places), typ=F32)
        value.align = FLOAT_BYTES
        return self.splat(value)

    # Vectors

    def splat(self, value: Value) -> Value:
        """One float32 in all lanes."""
        first = ir.Constant(ir.IntType(32), 0)
        none = ir.Constant(self.vector, ir.Undefined)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(
            self.builder.insert_element(none, value, first), none, lanes
        )

    def constant(self, value: Fraction | float) -> Value:
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a b + c, rounded once."""
        module = self.builder.module
        name = f"llvm.fma.v{self.lanes}f32"
        known = module.globals.get(name)
        if known is None:
            known = ir.Function(module, ir.FunctionType(self.vector, [self.vector] * 3), name)
        return self.builder.call(known, [a, b, c])

    def greatest(self, a: Value, b: Value) -> Value:
        """The greater, or not-a-number if one of them is that."""
        builder = self.builder
        other = builder.fcmp_unordered("uno", b, b)
        return builder.select(builder.or_(builder.fcmp_ordered(">", b, a), other), b, a)

    def clamp(self, value: Value, low: Value, high: Value) -> Value:
        """``value`` between the bounds; not-a-number stays what it is."""
        builder = self.builder
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)


@dataclass
class Reduction:
    """One turn of :meth:`Function.reduction`: its index, and the values to replace."""

    index: Value
    sums: list[Value] = field(default_factory=list)
