"""Running ``ip`` and ``tc``, and finding out what this machine lets us have."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeflow_mpi.errors import ClusterError
from edgeflow_mpi.testbed.commands import Batch, Names
from edgeflow_mpi.testbed.layout import Features

NAMESPACES = Path("/run/netns")

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
_TIMEOUT_S = 60
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
    done = _run(["nsenter", f"--net={NAMESPACES / namespace}", "sh", "-e"], script)
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
