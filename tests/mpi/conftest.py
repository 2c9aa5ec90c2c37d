"""Real ranks: run with ``mpirun -n N python -m pytest tests/mpi``, or with one rank without.

Every test must make the same collective calls on every rank, whatever it finds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from edgeflow_mpi.cluster.mpi_env import configure_mpi_environment

if TYPE_CHECKING:
    from mpi4py import MPI

# Tests import MPI themselves, which starts it: the settings must be made before that.
configure_mpi_environment()


@pytest.fixture(scope="session")
def comm() -> MPI.Intracomm:
    """All ranks of this run."""
    from mpi4py import MPI

    # The ranks of a test run share the cores of one machine.
    torch.set_num_threads(1)
    return MPI.COMM_WORLD


@pytest.fixture
def shared_dir(comm: MPI.Intracomm) -> Iterator[Path]:
    """One folder for all ranks. (With ``tmp_path`` they clean up under each other's feet.)"""
    folder = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None, root=0))
    yield folder
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(folder)
