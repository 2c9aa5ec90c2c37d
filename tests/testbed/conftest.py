"""A testbed of the tests' own name, taken down whatever happens, or a loud skip."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.testbed import system
from edgeflow_mpi.testbed.commands import Names

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from testbed_cases import Launch


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if any("tests/testbed/" in report.nodeid for report in skipped):
        terminalreporter.section("NO TESTBED HERE", yellow=True)
        terminalreporter.line("hosts, links and jobs on them were not tested: see launch/testbed")


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """Runs ``launch/testbed`` on a testbed that no one else uses."""
    from testbed_cases import BED, ROOT

    try:
        system.require_tools()
        features = system.find_features(Names(BED))
    except ClusterError as error:
        pytest.skip(str(error))
    if not features.tbf:
        pytest.skip("this kernel has no token bucket filter (tbf)")

    def run(*words: object, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "launch" / "testbed"), *map(str, words)],
            env=os.environ | {"EDGEFLOW_TESTBED": BED},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    try:
        yield run
    finally:
        run("down")
        left = [space for space in system.namespaces() if Names(BED).owns(space)]
        for space in left:
            system.delete_namespace(space)
        assert left == []
