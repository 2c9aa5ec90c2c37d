"""The package is a pipeline: a module imports only from stages before its own.

Imports are read from the source, so that those inside functions count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "edgeflow_mpi"

# From the bottom up; names in one tuple share a layer and may import one another.
LAYERS = (
    ("errors", "ending"),
    ("progress",),
    ("cache",),
    ("spans",),
    ("model",),
    ("graph",),
    ("kernels",),
    ("cluster",),
    ("partition",),
    ("units",),
    ("runtime",),
    ("report",),
    ("job",),
    ("run", "planner_cli", "__main__", "examples", "testbed"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

MAY_IMPORT_MPI4PY = {"runtime/mpi.py", "cluster/measure.py", "cluster/links.py", "run.py"}
MAY_NAME_COMM_WORLD = {"run.py"}

MODULES = sorted(path.relative_to(ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py"))


def imported_modules(tree: ast.AST, module: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Dotted names of all imports; ``module`` resolves relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            # `from edgeflow_mpi import run` imports a module of the package, not the package.
            yield from ((*base, alias.name) if base == (PACKAGE,) else base for alias in node.names)


def layering_faults(tree: ast.AST, path: Path) -> list[str]:
    module = (PACKAGE, *path.with_suffix("").parts)
    stage = module[1]
    if stage == "__init__":
        return [
            f"the package itself imports {'.'.join(name)}"
            for name in imported_modules(tree, module)
            if name != ("__future__",)
        ]
    if stage not in LEVEL:
        return [f"{stage} has no place in the order of stages: give it one in this test"]
    return [
        f"{'.'.join(name)} belongs to a later stage than {stage}"
        for name in imported_modules(tree, module)
        if name[0] == PACKAGE
        and len(name) > 1
        and name[1] != "__version__"
        and LEVEL.get(name[1], -1) > LEVEL[stage]
    ]


def mpi_faults(tree: ast.AST, path: Path) -> list[str]:
    faults = []
    module = (PACKAGE, *path.with_suffix("").parts)
    if path.as_posix() not in MAY_IMPORT_MPI4PY and any(
        name[0] == "mpi4py" for name in imported_modules(tree, module)
    ):
        faults.append("mpi4py is for the transport, the measurements and the entry point")
    names_world = any(
        (isinstance(node, ast.Attribute) and node.attr == "COMM_WORLD")
        or (isinstance(node, ast.alias) and node.name == "COMM_WORLD")
        for node in ast.walk(tree)
    )
    if names_world and path.as_posix() not in MAY_NAME_COMM_WORLD:
        faults.append("COMM_WORLD is for the entry point: take the communicator as an argument")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_follow_the_pipeline(path: Path) -> None:
    tree = ast.parse((ROOT / PACKAGE / path).read_text())
    assert layering_faults(tree, path) + mpi_faults(tree, path) == []


@pytest.mark.parametrize(
    ("source", "path", "word"),
    [
        ("from edgeflow_mpi.units.tables import Unit", "graph/types.py", "later stage"),
        ("def f():\n    import edgeflow_mpi.run", "report/json.py", "later stage"),
        ("from edgeflow_mpi import runtime", "cluster/fit.py", "later stage"),
        ("from ..runtime import mpi", "model/load.py", "later stage"),
        ("import edgeflow_mpi.spans", "newcomer.py", "no place"),
        ("import torch", "__init__.py", "the package itself"),
        ("from mpi4py import MPI", "cluster/fit.py", "mpi4py"),
        ("import mpi4py.MPI", "runtime/executor.py", "mpi4py"),
        ("comm = MPI.COMM_WORLD", "runtime/mpi.py", "COMM_WORLD"),
        ("from mpi4py.MPI import COMM_WORLD", "runtime/mpi.py", "COMM_WORLD"),
    ],
    ids=str,
)
def test_a_violation_is_seen(source: str, path: str, word: str) -> None:
    tree = ast.parse(source)
    faults = layering_faults(tree, Path(path)) + mpi_faults(tree, Path(path))
    assert len(faults) == 1
    assert word in faults[0]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from edgeflow_mpi.spans import Span", "graph/types.py"),
        ("from edgeflow_mpi.graph import types", "graph/rules/conv.py"),
        ("from . import types", "graph/fuse.py"),
        ("from edgeflow_mpi import __version__", "report/json.py"),
        ("from mpi4py import MPI\ncomm = MPI.COMM_WORLD", "run.py"),
        ("from mpi4py import MPI", "runtime/mpi.py"),
    ],
    ids=str,
)
def test_what_is_allowed_passes(source: str, path: str) -> None:
    tree = ast.parse(source)
    assert layering_faults(tree, Path(path)) + mpi_faults(tree, Path(path)) == []


def test_the_entry_point_loads_nothing_before_cores_and_mpi_are_set_up() -> None:
    """Torch's thread pool and MPI must find the affinity and the settings that the job makes."""
    code = "import sys, edgeflow_mpi.run; print(sorted({'torch', 'mpi4py'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
