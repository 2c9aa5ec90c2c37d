"""Large pages: asked for before torch allocates anything, and used from their start on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeflow_mpi.cluster.pages import use_large_pages
from edgeflow_mpi.kernels.large_pages import PAGE_BYTES, lasting, on_large_pages

_WAYS = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SCRIPT = """
from edgeflow_mpi.cluster.pages import use_large_pages
use_large_pages()
import torch
kept = torch.ones(16 << 20)
print(next(line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHuge")))
"""


def test_a_setting_of_the_users_wins() -> None:
    chosen = {"THP_MEM_ALLOC_ENABLE": "0"}
    use_large_pages(chosen)
    assert chosen == {"THP_MEM_ALLOC_ENABLE": "0"}


@pytest.mark.skipif(
    not _WAYS.exists() or "[never]" in _WAYS.read_text(), reason="this kernel gives no large pages"
)
@pytest.mark.parametrize(("setting", "large"), [(None, True), ("0", False)])
def test_tensors_lie_on_large_pages(setting: str | None, large: bool) -> None:
    environ = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    if setting is not None:
        environ["THP_MEM_ALLOC_ENABLE"] = setting
    if not large and "[always]" in _WAYS.read_text():
        pytest.skip("this kernel gives large pages unasked")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout.split()[1]) >= 16 << 10) is large  # kB of the tensor's 64 MB


def test_large_memory_begins_with_a_page() -> None:
    memory = on_large_pages(3 * PAGE_BYTES + 5)
    assert memory.numel() == 3 * PAGE_BYTES + 5
    assert memory.data_ptr() % PAGE_BYTES == 0
    assert on_large_pages(0).numel() == 0


def test_lasting_tensors_share_pages_but_no_memory() -> None:
    shapes = [(3,), (17, 5), (256, 256), (1024, 1024), (1,)] * 6
    tensors = [lasting(*shape) for shape in shapes]
    for i, tensor in enumerate(tensors):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(i)
    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(tensors))
