"""Jobs of this tree on ranks of this machine, for the measurements."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The job's Python and mpirun, and what mpirun must find in its environment.
_SCRIPT = 'root=$0; source "$root/launch/env.sh"; export EDGEFLOW_LOCAL=1; exec mpirun "$@"'


def mpirun(ranks: int, module: str, *arguments: str) -> list[str]:
    """The command that runs ``python -m module arguments`` on so many ranks."""
    launch = ["bash", "-c", _SCRIPT, str(ROOT), "-n", str(ranks)]
    return [*launch, "python", "-m", module, *arguments]
