"""One cell of the grid on its testbed: a cluster comes up, one job measures, the result is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.latency import machine
from bench.mpirun import ROOT
from bench.policies.grid import Place, slowdown
from bench.policies.results import Cell, outcome_from
from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.testbed.state import NAME_VARIABLE, load_state

BED = "policies"
_TESTBED = ROOT / "launch" / "testbed"


@dataclass(frozen=True)
class Effort:
    """How long to plan and how often to ask at least; ``options`` are more of the job's.

    ``turns`` is a file that jobs on several testbeds lock while they measure requests.
    """

    repeat: int = 2
    warmup: int = 1
    plan_seconds: float = 10.0
    options: tuple[str, ...] = ()
    bed: str = BED
    turns: Path | None = None


class Running:
    """The commands that run now, of all testbeds, so that all can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: set[subprocess.Popen[str]] = set()
        self._over = False

    def add(self, command: subprocess.Popen[str]) -> None:
        with self._lock:
            self._commands.add(command)
            if self._over:
                command.terminate()

    def remove(self, command: subprocess.Popen[str]) -> None:
        with self._lock:
            self._commands.discard(command)

    def end(self) -> None:
        """Those, and all that are yet to be started; mpirun ends its ranks."""
        with self._lock:
            self._over = True
            for command in self._commands:
                command.terminate()


def measure_place(
    place: Place, effort: Effort, progress: Progress, running: Running | None = None
) -> Cell:
    """Measure one cell; its testbed stays up, for the next model on the same cluster.

    Raises
    ------
    ClusterError
        If there can be no testbed here, or the job fails, with its own sentence.
    """
    began_s, started = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts: dict[str, Any] = {"started": started, **machine()}
    times = slowdown(place)
    running = running or Running()
    with tempfile.TemporaryDirectory(prefix="edgeflow-policies-") as name:
        folder = Path(name)
        file = folder / f"{place.cluster.name}.yaml"
        file.write_text(place.cluster.text(times))
        _follow(effort, ["up", str(file), "--ignore-latency"], place.key, progress, running)
        result = folder / "result.json"
        _follow(effort, _job(place, effort, result), place.key, progress, running)
        try:
            found = json.loads(result.read_text())
        except (OSError, ValueError):
            raise ClusterError(f"{place.key}: the job left no result") from None
    state = load_state(effort.bed)
    measured = state.measured[0] if state is not None and state.measured else None
    cluster = place.cluster
    return Cell(
        place.model, cluster.name, cluster.kind, cluster.bandwidth_mbps, cluster.gflops,
        None
        if measured is None
        else (measured.latency_ms / times, measured.bandwidth_mbps * times),
        tuple(outcome_from(one).quicker(times) for one in found["outcomes"]),
        found["refused"],
        facts | {"versions": found["versions"], "plan_seconds": effort.plan_seconds},
        time.monotonic() - began_s,
        times,
    )  # fmt: skip


def take_down(bed: str = BED) -> None:
    """Remove the testbed, if one is up."""
    _run(bed, ["down"])


def _job(place: Place, effort: Effort, result: Path) -> list[str]:
    model = place.model if re.search(r"[:/]|\.pt2$", place.model) else f"torchvision:{place.model}"
    turns = () if effort.turns is None else ("--turns", str(effort.turns))
    return [
        "run", "--module", "bench.policies.job", "--", *turns,
        "--result", str(result), "--partitioners", ",".join(place.partitioners),
        "--model", model, "--links-from-cluster",
        "--plan-seconds", f"{effort.plan_seconds:g}",
        "--repeat", str(effort.repeat), "--warmup", str(effort.warmup), *effort.options,
    ]  # fmt: skip


def _follow(
    effort: Effort, words: Sequence[str], where: str, progress: Progress, running: Running
) -> None:
    """Run a command of the testbed to its end, and pass on what it says."""
    said: list[str] = []
    with subprocess.Popen(
        [_TESTBED, *words],
        cwd=ROOT,
        env=_environment(effort.bed),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as command:
        assert command.stdout is not None
        running.add(command)
        try:
            for line in command.stdout:
                said = [*said[-100:], line.strip()]
                progress.update(f"{where}: {line.strip(' …' + chr(10))}")
        except BaseException:
            command.terminate()
            raise
        finally:
            running.remove(command)
    if command.returncode:
        sentences = [line for line in said if re.match(r"(edgeflow_mpi|launch/testbed): ", line)]
        last = sentences or [line for line in said if line] or ["it failed"]
        raise ClusterError(f"{where}: {last[-1].partition(': ')[2] or last[-1]}")


def _run(bed: str, words: Sequence[str]) -> None:
    subprocess.run(
        [_TESTBED, *words], cwd=ROOT, env=_environment(bed), stdin=subprocess.DEVNULL,
        capture_output=True, check=False,
    )  # fmt: skip


def _environment(bed: str) -> dict[str, str]:
    return os.environ | {NAME_VARIABLE: bed}
