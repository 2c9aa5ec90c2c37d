"""Real jobs, started as a user starts them, which cannot outlive their test.

Every process of a job carries a mark in its environment. Ranks have process groups of their
own, so it is by this mark that what a job left behind is found, and ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCAL = str(ROOT / "launch" / "local")
QUICK = ("--plan-simulations", "200")
"""Jobs are not to search for long; options that come later win."""
RUN = (sys.executable, "-m", "edgeflow_mpi.run")

SECONDS = 60.0
"""Within so many a job that fails has ended, on a machine that does other things as well."""

_MARK = "EDGEFLOW_TEST_JOB"
_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_", "HYDRA_", "EDGEFLOW_")
_LINGER_S = 10.0


@dataclass(frozen=True)
class Done:
    """A job that has ended: its exit status, what it printed, and how long it ran.

    ``left`` are the processes, if any, that were still there some seconds after its end.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    left: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        """The lines of standard error that are the package's own failures."""
        return [line for line in self.stderr.splitlines() if line.startswith("edgeflow_mpi: ")]

    def failure(self) -> str:
        """The one sentence of a job that failed as it should; asserts that it did so.

        It must be the only one, without a traceback, within seconds, with nothing on standard
        output and no process left behind. That it stands before the launcher's banner is not
        asserted: they reach the terminal by different ways, and a busy machine may swap them.
        """
        assert self.status not in (0, None), self
        assert self.stdout == "", self
        assert len(self.sentences) == 1, self
        assert "Traceback" not in self.stderr, self
        assert not self.left, self
        assert self.seconds < SECONDS, self
        return self.sentences[0].removeprefix("edgeflow_mpi: ")

    def success(self) -> str:
        """What a job that went well printed; asserts that it did."""
        assert self.status == 0, self
        assert not self.left, self
        return self.stdout


class Job:
    """A job under way; :func:`started` makes one."""

    def __init__(
        self, command: Sequence[str], folder: Path | None, environ: Mapping[str, str]
    ) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self._folder = Path(tempfile.mkdtemp(prefix="job-"))
        self._out, self._err = self._folder / "out", self._folder / "err"
        self._began_s = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**clean_environment(), **environ, name: value},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of mpirun (the launcher's scripts become it), or of the only rank."""
        return self._process.pid

    def processes(self) -> dict[int, str]:
        """The job's processes by their number, with their command lines."""
        return _marked(self._mark)

    def ranks(self) -> list[int]:
        """The processes that are ranks, oldest first."""
        return sorted(pid for pid in self.processes() if pid != self.pid)

    def printed(self) -> str:
        """Standard error so far."""
        return _text(self._err)

    def wait_for(self, text: str, *, timeout_s: float = 90.0) -> None:
        """Return as soon as ``text`` stands on standard error."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.printed():
            assert self._process.poll() is None, f"ended without {text!r}: {self.printed()}"
            assert time.monotonic() < deadline_s, f"no {text!r} so far: {self.printed()}"
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """Send a signal to mpirun."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> Done:
        """The end of the job; raises subprocess.TimeoutExpired if it does not come."""
        status = self._process.wait(timeout_s)
        seconds = time.monotonic() - self._began_s
        deadline_s = time.monotonic() + _LINGER_S
        while (left := self.processes()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return Done(status, _text(self._out), _text(self._err), seconds, tuple(left.values()))

    def end(self) -> None:
        """End whatever is still there."""
        for pid in (self.pid, *self.processes()):
            with contextlib.suppress(ProcessLookupError):
                if pid != self.pid or self._process.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(10)
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Job]:
    """Start a command; nothing of it is left when the context ends."""
    job = Job(command, folder, environ or {})
    try:
        yield job
    finally:
        job.end()


def finished(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = 100.0,
) -> Done:
    """Run a command to its end; a hang fails after ``timeout_s`` and leaves nothing behind."""
    with started(command, folder=folder, environ=environ) as job:
        try:
            return job.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{' '.join(command)} hangs:\n{job.printed()}\n{job.processes()}"
            ) from None


@dataclass(frozen=True)
class Sabotaged:
    """A job's options, and the rank on which it goes wrong in a way of :mod:`job_sabotage`."""

    rank: int
    how: str
    options: Sequence[object]


def series(
    folder: Path,
    ranks: int,
    jobs: Mapping[str, Sequence[object] | Sabotaged],
    *,
    timeout_s: float = 150.0,
) -> dict[str, Done]:
    """Run many jobs, given by name, in the same processes; what each of them printed.

    One rank runs without mpirun. Asserts that no rank but 0 prints anything, and that all
    ranks return the same status.
    """
    place = Path(tempfile.mkdtemp(prefix="series-", dir=folder))
    (place / "jobs.json").write_text(json.dumps([_encoded(job) for job in jobs.values()]))
    command = [sys.executable, str(ROOT / "tests" / "job_series.py"), str(place)]
    if ranks > 1:
        command = [mpirun(), "-n", str(ranks), *command]
    done = finished(command, folder=folder, timeout_s=timeout_s)
    assert done.status == 0 and not done.left, done
    found = {}
    for index, name in enumerate(jobs):
        first, *others = (
            json.loads((place / f"{index}.{rank}.json").read_text()) for rank in range(ranks)
        )
        for other in others:
            assert (other["stdout"], other["stderr"]) == ("", ""), (name, other)
            assert other["status"] == first["status"], (name, other, first)
        found[name] = Done(**first, left=())
    return found


def _encoded(job: Sequence[object] | Sabotaged) -> list[object]:
    if isinstance(job, Sabotaged):
        return [_quick(job.options), [job.rank, job.how]]
    return [_quick(job), None]


def _quick(options: Sequence[object]) -> list[str]:
    """The options of a job that does not search for long, if it makes a plan at all."""
    return [*([] if "--plan" in options else QUICK), *map(str, options)]


def local(ranks: int, *options: object) -> list[str]:
    """The command ``launch/local`` with these options."""
    return [LOCAL, str(ranks), *_quick(options)]


def sabotaged(how: str) -> list[str]:
    """The command of a rank that goes wrong in a way of :mod:`job_sabotage`."""
    return [sys.executable, str(ROOT / "tests" / "job_sabotage.py"), how]


def mixed(*ranks: Sequence[str]) -> list[str]:
    """An mpirun command in which every rank has a command of its own."""
    command = [mpirun()]
    for rank in ranks:
        command += [*([":"] if len(command) > 1 else []), "-n", "1", *rank]
    return command


def mpirun() -> str:
    """Open MPI's launcher beside the interpreter, or else on PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found is not None, "these tests need an mpirun"
    return found


def clean_environment() -> dict[str, str]:
    """This process's environment, without what a launcher may have put there.

    Open MPI is told what ``launch/env.sh`` tells it, for tests that call mpirun themselves.
    """
    environ = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    environ |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "EDGEFLOW_LOCAL": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    }
    return environ


def _text(file: Path) -> str:
    """What stands in a file, without what mpirun's terminals add."""
    return file.read_text(errors="replace").replace("\r\n", "\n").replace("\0", "")


def _marked(mark: str) -> dict[int, str]:
    """Processes with ``mark`` in their environment, zombies left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                found[int(folder.name)] = command
    return found
