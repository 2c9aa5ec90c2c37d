"""Units run by machine code: how long it asks for messages, and when it might do something else."""

from __future__ import annotations

import ctypes
import time
from array import array
from random import Random

import pytest

from edgeflow_mpi.kernels.native import NativeCall
from edgeflow_mpi.kernels.registry import usable
from edgeflow_mpi.runtime.tasks import without_alternative

if not usable("pointwise"):
    pytest.skip("llvmlite is not installed, or not for this processor", allow_module_level=True)

from edgeflow_mpi.kernels.llvm.sequence import Kind, Operation, sequence

_TEST = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p
)


class Messages:
    """What MPI says about two messages: not before so many questions, if ever."""

    def __init__(self, questions: float, *, error: int = 0) -> None:
        self.asked, self._questions, self._error = 0, questions, error
        self._flag = ctypes.c_int()
        self._function = _TEST(self._answer)

    def _answer(self, count: int, _requests: int, flag: ctypes.Array[ctypes.c_int], _: int) -> int:
        assert count == 2
        self.asked += 1
        flag[0] = int(self.asked >= self._questions)
        return self._error

    def operation(self, patience_s: float) -> Operation:
        address = ctypes.cast(self._function, ctypes.c_void_p).value
        assert address is not None
        frame = array("q", [2, 0, ctypes.addressof(self._flag), 0, round(1e9 * patience_s)])
        return Operation(Kind.TEST, NativeCall(address, frame, keeps=self))


def test_messages_are_asked_for_until_they_are_there() -> None:
    messages = Messages(5)
    code = sequence([messages.operation(60.0), messages.operation(0.0)])
    assert code is not None
    started_s = time.perf_counter()
    assert code.run(0, 2) == 2
    passed_s = time.perf_counter() - started_s
    assert messages.asked == 6
    began_s, ended_s = code.times_s(0)
    assert 0 < code.waited_s(0) < ended_s - began_s <= passed_s
    assert code.waited_s(1) == 0
    assert code.take_waited_s() == code.waited_s(0)
    assert code.take_waited_s() == 0


@pytest.mark.parametrize("patience_s", [0.0, 0.003])
def test_messages_that_do_not_come_are_left_to_the_caller(patience_s: float) -> None:
    messages = Messages(float("inf"))
    code = sequence([messages.operation(patience_s)])
    assert code is not None
    assert code.run(0, 1) == 0
    assert code.take_waited_s() >= patience_s
    assert (messages.asked > 1) == (patience_s > 0)


def test_an_error_of_mpi_ends_the_wait() -> None:
    code = sequence([Messages(float("inf"), error=7).operation(60.0)])
    assert code is not None
    with pytest.raises(RuntimeError, match="error 7"):
        code.run(0, 1)


def test_a_unit_alone_can_be_next_where_no_other_is_ready() -> None:
    random = Random(0)
    for _ in range(50):
        count = random.randrange(1, 12)
        reads = [{j for j in range(i) if random.random() < 0.3} for i in range(count)]
        feeds = {j: [i for i in range(count) if j in reads[i]] for j in range(count)}
        found = without_alternative([len(read) for read in reads], feeds)
        for i in range(count):
            others = [k for k in range(i + 1, count) if all(j < i for j in reads[k])]
            assert found[i] == (not others)
