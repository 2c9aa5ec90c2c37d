"""Who takes part, and how each is started, told what to do, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.engines.channel import Channel, ChannelError, Listener, Message
from bench.mpirun import ROOT, mpirun
from edgeflow_mpi.errors import EdgeflowError

OURS = "edgeflow"
APART = "edgeflow-apart"
"""Two jobs of one rank, each on a core of its own and with requests of its own: what both cores
give together where nothing is divided."""
TORCH = ("torch", "torch-compile")
ENGINES: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "mnn": "MNN",
}
"""Systems that a user would choose instead, with the distributions that bring them."""

LABELS: Mapping[str, str] = {
    OURS: "edgeflow-mpi",
    APART: "edgeflow-mpi apart",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
    "mnn": "MNN",
    "torch": "torch, eager",
    "torch-compile": "torch.compile",
}
SYSTEMS = tuple(LABELS)

_START_S, _ORDER_S, _END_S = 600.0, 300.0, 10.0
_IDLE_WINDOW_S, _IDLE_SHARE, _LONGEST_SPIN_S = 0.01, 0.05, 2.0


class Absent(EdgeflowError):
    """A contender that cannot take part; the sentence says why."""


@dataclass(frozen=True)
class Contender:
    """A system on so many cores: that many threads or, for ours, ranks of one thread each."""

    system: str
    cores: int

    @property
    def name(self) -> str:
        return f"{self.system}-{self.cores}"

    @property
    def parts(self) -> tuple[Contender, ...]:
        """What is started, each of which has a request to answer."""
        return (Contender(OURS, 1),) * self.cores if self.system == APART else (self,)

    @property
    def ranks(self) -> int:
        """How many processes of a part report."""
        return self.cores if self.system == OURS else 1


def parse_contender(text: str) -> list[Contender]:
    """``ncnn-2``, or ``ncnn`` for both numbers of cores. What is apart takes two.

    Raises
    ------
    ValueError
        For anything else.
    """
    known = [Contender(s, cores) for s in SYSTEMS for cores in ((2,) if s == APART else (1, 2))]
    found = [each for each in known if text in (each.system, each.name)]
    if not found:
        raise ValueError(text)
    return found


@dataclass(frozen=True)
class Place:
    """Where things are: folders of the model and of the engines, and this machine's cores."""

    model: Path
    work: Path
    cores: tuple[int, ...]
    options: tuple[str, ...] = ()
    """For the job of ours."""

    @property
    def python(self) -> Path:
        """Of the environment that has the engines."""
        return self.work / "venv" / "bin" / "python"


def installed(python: Path) -> dict[str, str]:
    """Version by system, of the engines that are there; none if there is no environment."""
    if not python.exists():
        return {}
    script = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else {}
    names = {system: name.lower() for system, name in ENGINES.items()}
    return {system: found[name] for system, name in names.items() if name in found}


class Running:
    """A contender that has loaded the model and sleeps.

    Attributes
    ----------
    hello : what its processes told when they were ready, rank 0 of every part first.
    """

    def __init__(self, contender: Contender, parts: Sequence[_Part]) -> None:
        self.contender = contender
        self.hello = tuple(hello for part in parts for hello in part.hello)
        self._parts = parts

    def answer(self, requests: int, warmup: int) -> list[Message]:
        """Some requests to every part at the same time, and what every rank tells of them.

        Raises
        ------
        EdgeflowError
            If it fails on the way.
        """
        order = {"do": "run", "requests": requests, "warmup": warmup}
        try:
            for part in self._parts:
                for channel in part.channels:
                    channel.send(order)
            return [
                channel.receive(_ORDER_S, part.lives)
                for part in self._parts
                for channel in part.channels
            ]
        except ChannelError as error:
            raise EdgeflowError(f"{self.contender.name} failed on the way: {error}") from error

    def move(self, core: int) -> None:
        """Bind all its threads to one core."""
        for pid in self._family():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(int(task.name), {core})

    def settle(self) -> float:
        """Return when its threads sleep; seconds that they spun after their work."""
        began_s = time.perf_counter()
        before_s = self.cpu_s()
        while (waited_s := time.perf_counter() - began_s) < _LONGEST_SPIN_S:
            time.sleep(_IDLE_WINDOW_S)
            now_s = self.cpu_s()
            if now_s - before_s < _IDLE_SHARE * _IDLE_WINDOW_S:
                return waited_s
            before_s = now_s
        return waited_s

    def cpu_s(self) -> float:
        """Processor time so far of all its processes."""
        return sum(_cpu_s(pid) for pid in self._family())

    def _family(self) -> Iterator[int]:
        for part in self._parts:
            yield from _family(part.process.pid)


@dataclass(frozen=True)
class _Part:
    """One command, the channels to its ranks, and what they told when they were ready."""

    process: subprocess.Popen[bytes]
    channels: tuple[Channel, ...]
    hello: tuple[Message, ...]

    def lives(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        for channel in self.channels:
            with contextlib.suppress(ChannelError):
                channel.send({"do": "end"})
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            _end(self.process)
        for channel in self.channels:
            channel.close()


@contextlib.contextmanager
def started(contender: Contender, place: Place) -> Iterator[Running]:
    """A contender with the model loaded; ended with the context.

    Raises
    ------
    Absent
        If it does not come up, with the last thing that it said.
    """
    cores = place.cores[-contender.cores :]
    share = len(cores) // len(contender.parts)
    with contextlib.ExitStack() as stack:
        parts = []
        for number, part in enumerate(contender.parts):
            name = contender.name if share == len(cores) else f"{contender.name}.{number}"
            own = replace(place, cores=cores[number * share : (number + 1) * share])
            parts.append(_up(part, name, own))
            stack.callback(parts[-1].end)
        yield Running(contender, parts)


def _up(contender: Contender, name: str, place: Place) -> _Part:
    """One part of what is called ``name``, on all cores of ``place``."""
    logs = place.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{place.model.name}-{name}.log"
    address = logs / f"{os.getpid()}-{name}.socket"
    with Listener(address) as listener, log.open("wb") as said:
        process = subprocess.Popen(
            _command(contender, place, address),
            cwd=ROOT,
            env=_environment(contender),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, place.cores),
        )
        try:
            channels, hellos = {}, {}
            for _ in range(contender.ranks):
                channel = listener.accept(_START_S, lambda: process.poll() is None)
                hello = channel.receive(_START_S, lambda: process.poll() is None)
                channels[hello["rank"]], hellos[hello["rank"]] = channel, hello
        except ChannelError as error:
            _end(process)
            raise Absent(f"{name}: {_last_words(log) or error} ({log})") from error
        except BaseException:
            _end(process)
            raise
    order = sorted(channels)
    return _Part(process, tuple(channels[r] for r in order), tuple(hellos[r] for r in order))


def _command(contender: Contender, place: Place, address: Path) -> list[str]:
    if contender.system == OURS:
        options = ["--model", str(place.model / "model.pt2")]
        options += ["--input", str(place.model / "input.npy")]
        # A profile of its own: an old one may be of another state of the machine.
        options += ["--cache", str(place.work / "cache"), "--remeasure", *place.options]
        return mpirun(contender.cores, "bench.engines.job", str(address), *options)
    python = str(place.python) if contender.system in ENGINES else sys.executable
    worker = [python, "-m", "bench.engines.worker", str(address), contender.system]
    return [*worker, str(place.model), str(contender.cores)]


def _environment(contender: Contender) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if contender.system != OURS:
        environ |= {"OMP_NUM_THREADS": str(contender.cores), "PYTHONPATH": str(ROOT)}
    return environ


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)  # mpirun ends its ranks
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: Path) -> str:
    """The sentence with which a process ended, if it left one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("edgeflow_mpi: ")]
    return (ours or lines or [""])[-1]


def _family(root: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                parents.setdefault(int(parent), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def _cpu_s(pid: int) -> float:
    """Processor time of all threads of a process."""
    total_ns = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9
