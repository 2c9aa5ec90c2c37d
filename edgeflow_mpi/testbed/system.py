"""Running ``ip`` and ``tc``, and finding out what this machine lets us have."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.testbed.commands import Batch, Names
from edgeflow_mpi.testbed.layout import Features

NAMESPACES = Path("/run/netns")

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
_TIMEOUT_S = 60
_SWITCH_SOURCE = Path(__file__).with_name("switch.c")
_TUN = Path("/dev/net/tun")
_TRIALS = {
    "tbf": ("tbf rate 100mbit burst 3028 limit 100000",),
    "htb": ("handle 1: htb default 1",),
    "netem": ("netem delay 1ms",),
}


def require_tools() -> None:
    """Raise the one sentence that says why there can be no testbed for this user here.

    Raises
    ------
    ClusterError
        When not root, or a program is not installed.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "a testbed makes network namespaces, for which it must be root: use sudo, or a "
            "container with --privileged"
        )
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise ClusterError(f"there is no {tool} on PATH: install {package}")


def apply(batches: Iterable[Batch]) -> None:
    """Run the batches in order.

    Raises
    ------
    ClusterError
        With the line that failed and what the tool said.
    """
    for batch in batches:
        if batch.lines:
            _apply(batch)


def _apply(batch: Batch) -> None:
    where = [] if batch.namespace is None else ["-n", batch.namespace]
    done = _run([batch.tool, *where, "-batch", "-"], "\n".join(batch.lines) + "\n")
    if done.returncode:
        # "Command failed -:3" follows the tool's own words.
        said, _, place = done.stderr.strip().rpartition("Command failed -:")
        number = int(place) if place.isdecimal() else 1
        line = batch.lines[min(number, len(batch.lines)) - 1]
        reason = " ".join(said.split()) or done.stderr.strip() or "no reason given"
        raise ClusterError(f"{batch.tool} {line}: {reason}")


def namespaces() -> tuple[str, ...]:
    """All named network namespaces of the machine, sorted."""
    try:
        return tuple(sorted(path.name for path in NAMESPACES.iterdir()))
    except OSError:
        return ()


def delete_namespace(name: str) -> None:
    """Delete it, with all links in it; nothing if it does not exist."""
    if (NAMESPACES / name).exists():
        _apply(Batch("ip", None, (f"netns delete {name}",)))


def processes_in(namespace: str) -> tuple[int, ...]:
    """Ids of the processes that run in the namespace."""
    if not (NAMESPACES / namespace).exists():
        return ()
    done = _run(["ip", "netns", "pids", namespace])
    return tuple(int(word) for word in done.stdout.split() if word.isdecimal())


def write_settings(namespace: str, settings: Iterable[tuple[str, str]]) -> None:
    """Set kernel parameters (paths below ``/proc/sys``) in a network namespace."""
    script = "".join(f"echo {value} > /proc/sys/{path}\n" for path, value in settings)
    done = _run([*_entering(namespace), "sh", "-e"], script)
    if done.returncode:
        raise ClusterError(f"a setting of {namespace} cannot be made: {done.stderr.strip()}")


def find_features(names: Names) -> Features:
    """What the kernel has, tried out in a namespace that is deleted again.

    Raises
    ------
    ClusterError
        When namespaces, virtual cables or bridges cannot be made at all.
    """
    with _scratch(names) as space:
        for what, line in (
            ("virtual cables (veth, CONFIG_VETH)", "link add name left type veth peer name right"),
            ("bridges (CONFIG_BRIDGE)", "link add name middle type bridge"),
        ):
            try:
                apply([Batch("ip", space, (line,))])
            except ClusterError as error:
                raise ClusterError(
                    f"this kernel has no {what}, without which there is no testbed ({error})"
                ) from None
        found = {name: _accepts(space, *trial) for name, trial in _TRIALS.items()}
    return Features(**found)


def build_switch(folder: Path) -> Path | None:
    """The switch program, compiled into ``folder`` unless it is there; None where it cannot be had.

    That is where the kernel has no tap devices, or there is no C compiler.
    """
    if not _TUN.exists() or shutil.which("cc") is None:
        return None
    source = _SWITCH_SOURCE.read_bytes()
    program = folder / f"switch-{hashlib.sha256(source).hexdigest()[:16]}"
    if not program.exists():
        unfinished = program.with_suffix(f".{os.getpid()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            command = ["cc", "-O2", "-pthread", "-o", str(unfinished), str(_SWITCH_SOURCE)]
            if _run(command).returncode:
                return None
            unfinished.replace(program)
        except OSError:
            return None
    return program


def start_switch(program: Path, namespace: str, description: str) -> None:
    """Let the switch run in ``namespace`` until it is ended; all of its devices are there then.

    Raises
    ------
    ClusterError
        With what it says, if it does not get ready.
    """
    command = [*_entering(namespace), str(program)]
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert running.stdin is not None and running.stdout is not None
        with running.stdout:
            with contextlib.suppress(BrokenPipeError), running.stdin:
                running.stdin.write(description)
            ready = running.stdout.readline()
        if ready != "ready\n":
            running.wait(_TIMEOUT_S)
            said.seek(0)
            raise ClusterError(f"the testbed's switch did not start: {said.read().strip()}")
    # It outlives this process; nobody is to be told that it has not been waited for.
    running.returncode = 0


def _entering(namespace: str) -> list[str]:
    return ["nsenter", f"--net={NAMESPACES / namespace}"]


@contextlib.contextmanager
def _scratch(names: Names) -> Iterator[str]:
    space = f"{names.bed}_trial"
    delete_namespace(space)
    try:
        apply([Batch("ip", None, (f"netns add {space}",))])
    except ClusterError as error:
        raise ClusterError(
            f"this machine does not let root make network namespaces ({error}); in a container "
            "that takes --privileged"
        ) from None
    try:
        yield space
    finally:
        delete_namespace(space)


def _accepts(namespace: str, qdisc: str) -> bool:
    lines = (f"qdisc add dev left root {qdisc}", "qdisc del dev left root")
    try:
        apply([Batch("tc", namespace, lines)])
    except ClusterError:
        return False
    return True


def _run(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            arguments,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{' '.join(arguments[:3])} could not be run: {error}") from None
