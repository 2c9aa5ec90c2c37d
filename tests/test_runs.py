"""Copies of some channels of a map, and sums of vectors, by machine code."""

from __future__ import annotations

from random import Random

import pytest
import torch

from edgeflow_mpi.kernels.registry import usable
from tests.maps import Surrounded, maps

if not usable("pointwise"):
    pytest.skip("llvmlite is not installed, or not for this processor", allow_module_level=True)

from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.llvm.objects import Entry
from edgeflow_mpi.kernels.llvm.runs import copy_call, join_call, runner
from edgeflow_mpi.kernels.llvm.sums import sum_call


def test_some_channels_are_copied_and_nothing_beside_them() -> None:
    random, machine = Random(0), native()
    assert machine is not None
    for _ in range(20):
        channels = machine.lanes + random.randrange(50)
        height, width = random.randrange(1, 9), random.randrange(1, 9)
        source = maps(1, channels, height, width, random, parts=True)
        around = Surrounded(1, channels, height, width, random.choice([0, 5]))
        call = copy_call(around.part, source)
        assert call is not None
        runner(call)()
        assert torch.equal(around.part, source)
        assert around.untouched()


def test_maps_are_put_side_by_side_and_nothing_beside_them() -> None:
    random, machine = Random(2), native()
    assert machine is not None
    for _ in range(20):
        height, width = random.randrange(1, 9), random.randrange(1, 9)
        channels = [machine.lanes + random.randrange(50) for _ in range(random.randrange(1, 5))]
        sources = [maps(1, some, height, width, random, parts=True) for some in channels]
        around = Surrounded(1, sum(channels), height, width, random.choice([0, 5]))
        call = join_call(around.part, sources)
        assert call is not None
        runner(call)()
        assert torch.equal(around.part, torch.cat(sources, 1))
        assert around.untouched()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_vectors_are_added_from_front_to_back(count: int) -> None:
    machine = native()
    assert machine is not None
    for length in (machine.lanes, machine.lanes + 1, 5 * machine.lanes - 1):
        memory = torch.full((length + 2,), 7.0)
        parts = [torch.randn(1, length, 1, 1) for _ in range(count)]
        call = sum_call(memory[1:-1].view(1, length, 1, 1), parts)
        assert call is not None
        Entry(call.function).run(call.frame.buffer_info()[0])
        expected = parts[0].flatten()
        for part in parts[1:]:
            expected = expected + part.flatten()
        assert torch.equal(memory[1:-1], expected)
        assert memory[0] == memory[-1] == 7
    assert sum_call(torch.empty(4, 20).t(), [torch.empty(20, 4)] * 2) is None
    assert sum_call(torch.empty(20), [torch.empty(20, dtype=torch.float64)] * 2) is None


def test_others_are_left_to_torch() -> None:
    random = Random(1)
    source = maps(1, 64, 3, 4, random)
    turned = source.permute(0, 1, 3, 2)
    assert copy_call(torch.empty(turned.shape), turned) is None
    assert copy_call(source.double(), source) is None
    assert copy_call(source.narrow(1, 0, 2), source.narrow(1, 2, 2)) is None
    assert join_call(maps(1, 66, 3, 4, random), [source, source.narrow(1, 0, 2)]) is None
