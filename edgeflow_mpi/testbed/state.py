"""What is up, in a folder below ``/run``, so that every command knows what another one made.

The folder is written before the first namespace is made and removed after the last is gone;
what a killed command left is therefore always known, and only that is ever deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeflow_mpi.errors import ClusterError

STATES = Path("/run/edgeflow-testbed")
NAME_VARIABLE = "EDGEFLOW_TESTBED"
STATE_VARIABLE = "EDGEFLOW_TESTBED_STATE"
"""Tells ``launch/testbed-agent`` the folder of the testbed that is meant."""

_BED_NAME = re.compile(r"[a-z][a-z0-9]{0,15}")


@dataclass(frozen=True)
class Measurement:
    """What a link was found to do, beside what the cluster file says of it."""

    sender: str
    receiver: str
    latency_ms: float
    bandwidth_mbps: float
    stated_latency_ms: float
    stated_bandwidth_mbps: float


@dataclass(frozen=True)
class State:
    """A testbed, up or (``complete`` false) being made.

    ``text`` is the cluster file's. ``hosts`` are in rank order, ``addresses`` theirs;
    ``namespaces`` are all that it consists of, the switch's first. ``own_switch``: frames pass a
    program that runs there, and not the kernel's queues.
    """

    cluster: str
    text: str
    ignore_latency: bool
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    namespaces: tuple[str, ...]
    complete: bool
    measured: tuple[Measurement, ...] = ()
    own_switch: bool = False


def bed_name(environ: Mapping[str, str] = os.environ) -> str:
    """The testbed that is meant: ``edgeflow``, or what ``EDGEFLOW_TESTBED`` says.

    Raises
    ------
    ClusterError
        When that is no name.
    """
    name = environ.get(NAME_VARIABLE, "") or "edgeflow"
    if not _BED_NAME.fullmatch(name):
        raise ClusterError(
            f"{NAME_VARIABLE} is {name!r}: a testbed's name has at most 16 small letters and "
            "digits, a letter first"
        )
    return name


def folder(bed: str) -> Path:
    return STATES / bed


def cluster_file(bed: str, state: State) -> Path:
    """The copy of the cluster file that jobs on the testbed read."""
    return folder(bed) / f"{state.cluster}.yaml"


def load_state(bed: str) -> State | None:
    """The testbed of this name; None if there is none.

    Raises
    ------
    ClusterError
        When its file cannot be read.
    """
    path = folder(bed) / "state.json"
    try:
        values = json.loads(path.read_text())
        for key in ("hosts", "addresses", "namespaces"):
            values[key] = tuple(values[key])
        values["measured"] = tuple(Measurement(**one) for one in values["measured"])
        return State(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"{path} cannot be read ({type(error).__name__}): delete the namespaces that begin "
            f"with {bed}- or {bed}_ (ip netns delete NAME), then {path.parent}"
        ) from None


def save_state(bed: str, state: State) -> None:
    """Write the state, and the files that hosts and ``mpirun`` read.

    Raises
    ------
    ClusterError
        When they cannot be written.
    """
    names = "".join(f"{a} {h}\n" for a, h in zip(state.addresses, state.hosts, strict=True))
    files = {
        cluster_file(bed, state).name: state.text,
        "hosts": f"127.0.0.1 localhost\n{names}",
        "hostfile": "".join(f"{host} slots=1\n" for host in state.hosts),
    }
    place = folder(bed)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text)
        unfinished = place / "state.json.new"
        unfinished.write_text(json.dumps(asdict(state), indent=1))
        unfinished.replace(place / "state.json")
    except OSError as error:
        raise ClusterError(f"{place} cannot be written: {error.strerror}") from None


def remove_state(bed: str) -> None:
    shutil.rmtree(folder(bed), ignore_errors=True)


@contextlib.contextmanager
def locked(bed: str) -> Iterator[None]:
    """One command at a time makes or removes this testbed; others wait for it."""
    try:
        STATES.mkdir(parents=True, exist_ok=True)
        file = (STATES / f"{bed}.lock").open("w")
    except OSError as error:
        raise ClusterError(f"{STATES} cannot be written: {error.strerror}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
