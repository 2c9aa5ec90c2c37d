"""Copies of some channels of a map, by machine code."""

from __future__ import annotations

from random import Random

import pytest
import torch

from edgeflow_mpi.kernels.registry import usable
from tests.maps import Surrounded, maps

if not usable("pointwise"):
    pytest.skip("llvmlite is not installed, or not for this processor", allow_module_level=True)

from edgeflow_mpi.kernels.llvm.machine import native
from edgeflow_mpi.kernels.llvm.runs import copy_call, runner


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


def test_others_are_left_to_torch() -> None:
    random = Random(1)
    source = maps(1, 64, 3, 4, random)
    turned = source.permute(0, 1, 3, 2)
    assert copy_call(torch.empty(turned.shape), turned) is None
    assert copy_call(source.double(), source) is None
    assert copy_call(source.narrow(1, 0, 2), source.narrow(1, 2, 2)) is None
