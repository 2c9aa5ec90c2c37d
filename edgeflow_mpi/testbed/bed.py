"""Up, down, status, and commands on the hosts."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from edgeflow_mpi.cluster.cluster_file import ClusterSpec, parse_cluster
from edgeflow_mpi.errors import ClusterError, InputError
from edgeflow_mpi.testbed import switching, system
from edgeflow_mpi.testbed.commands import Names, bring_up, medium_settings
from edgeflow_mpi.testbed.layout import Features, Layout, lay_out
from edgeflow_mpi.testbed.probe import probe
from edgeflow_mpi.testbed.state import (
    STATE_VARIABLE,
    STATES,
    Measurement,
    State,
    cluster_file,
    folder,
    load_state,
    locked,
    remove_state,
    save_state,
)

_MOST_PROBES = 4
_OWN_SWITCH = Features(True, True, True, switching.NATURAL_LATENCY_S)
_PATIENCE_S = 3.0
_AGENT = Path(__file__).parents[2] / "launch" / "testbed-agent"
_DOWN = "launch/testbed down"
# Open MPI's parent and child both put an agent into a process group, and the later one complains.
_HARMLESS = "plm:ssh: Warning: setpgid("

Say = Callable[[str], None]


def up(bed: str, file: Path, *, ignore_latency: bool, say: Say) -> State:
    """Make the cluster of ``file``; where it is up already, leave it as it is.

    Raises
    ------
    EdgeflowError
        When the file cannot be used, the machine cannot have it, or another cluster is up and
        in use. Nothing is left behind then.
    """
    system.require_tools()
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the cluster file {file} cannot be read: {error}") from None
    spec = parse_cluster(text, str(file))
    names = Names(bed)
    with locked(bed):
        there = load_state(bed)
        if there is not None:
            if _stands(there) and (there.text, there.ignore_latency) == (text, ignore_latency):
                say(f"{there.cluster} is up already")
                return there
            busy = _processes(_host_spaces(there))
            if busy and there.complete:
                raise ClusterError(
                    f"{there.cluster} is up and {len(busy)} processes run on it: {_DOWN} ends them"
                )
            _remove(bed, there)
        foreign = [space for space in system.namespaces() if names.owns(space)]
        if foreign:
            raise ClusterError(
                f"the network namespace {foreign[0]} exists, and no testbed is known to have made "
                f"it: delete it (ip netns delete {foreign[0]}), or name this testbed otherwise "
                "with EDGEFLOW_TESTBED=NAME"
            )
        switch = system.build_switch(STATES)
        features = system.find_features(names) if switch is None else _OWN_SWITCH
        layout = lay_out(spec, features, ignore_latency=ignore_latency)
        return _make(bed, spec, layout, switch, State(
            spec.name, text, ignore_latency,
            tuple(host.name for host in layout.hosts),
            tuple(host.address for host in layout.hosts),
            _spaces(names, layout, own_switch=switch is not None),
            complete=False,
            own_switch=switch is not None,
        ))  # fmt: skip


def _make(bed: str, spec: ClusterSpec, layout: Layout, switch: Path | None, state: State) -> State:
    names = Names(bed)
    save_state(bed, state)
    try:
        if switch is None:
            system.apply(bring_up(layout, names))
            if layout.medium_mbps is not None:
                system.write_settings(names.medium, medium_settings())
        else:
            _plug_in(names, layout, switch)
        state = replace(state, complete=True, measured=_measure(names, spec, layout))
        save_state(bed, state)
    except BaseException:
        _remove(bed, state)
        raise
    return state


def _plug_in(names: Names, layout: Layout, switch: Path) -> None:
    """The hosts and their cables on a switch of our own."""
    hosts = [names.host(host.name) for host in layout.hosts]
    system.apply([switching.spaces_first(layout, names)])
    files = [str(system.NAMESPACES / host) for host in hosts]
    system.start_switch(switch, names.switch, switching.description(layout, files))
    system.apply(switching.cables(layout, names))
    for host in hosts:
        system.write_settings(host, switching.host_settings())


def _spaces(names: Names, layout: Layout, *, own_switch: bool) -> tuple[str, ...]:
    medium = () if own_switch or layout.medium_mbps is None else (names.medium,)
    return (names.switch, *medium, *(names.host(host.name) for host in layout.hosts))


def _measure(names: Names, spec: ClusterSpec, layout: Layout) -> tuple[Measurement, ...]:
    """One link of every kind that the file knows, but not more than a few."""
    kinds: dict[object, tuple[int, int]] = {}
    for pair, link in spec.links.items():
        kinds.setdefault(link, pair)
    found = []
    for (i, j), link in [(pair, spec.links[pair]) for pair in kinds.values()][:_MOST_PROBES]:
        sender, receiver = (system.NAMESPACES / names.host(spec.names[rank]) for rank in (i, j))
        measured = probe(sender, receiver, layout.hosts[j].address, link.bandwidth_bytes_s)
        found.append(
            Measurement(
                spec.names[i], spec.names[j],
                measured.latency_s * 1e3, measured.bandwidth_bytes_s * 8e-6,
                link.latency_s * 1e3, link.bandwidth_bytes_s * 8e-6,
            )
        )  # fmt: skip
    return tuple(found)


def down(bed: str) -> State | None:
    """End what runs on the testbed and remove it; what was there, or None."""
    system.require_tools()
    with locked(bed):
        state = load_state(bed)
        if state is not None:
            _remove(bed, state)
    return state


def _remove(bed: str, state: State) -> None:
    _end(_processes(_host_spaces(state)))
    _end(_processes(state.namespaces))
    for space in state.namespaces:
        system.delete_namespace(space)
    remove_state(bed)


def _host_spaces(state: State) -> tuple[str, ...]:
    return state.namespaces[-len(state.hosts) :]


def _processes(spaces: Sequence[str]) -> tuple[int, ...]:
    """Everything that runs in the namespaces, except this very process."""
    found = {pid for space in spaces for pid in system.processes_in(space)}
    return tuple(sorted(found - {os.getpid()}))


def _end(pids: Sequence[int]) -> None:
    for kill in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kill)
        deadline_s = time.monotonic() + _PATIENCE_S
        while pids and time.monotonic() < deadline_s:
            time.sleep(0.02)
            pids = [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def _stands(state: State) -> bool:
    """Whether all of it is there, after a reboot or someone's ``ip netns delete``."""
    if not state.complete or not set(state.namespaces) <= set(system.namespaces()):
        return False
    return not state.own_switch or bool(system.processes_in(state.namespaces[0]))


def require_up(bed: str) -> State:
    """The testbed that is up.

    Raises
    ------
    ClusterError
        When none is, or only remains of one.
    """
    system.require_tools()
    state = load_state(bed)
    if state is None:
        raise ClusterError("no testbed is up: launch/testbed up CLUSTER.yaml makes one")
    if not _stands(state):
        raise ClusterError(
            f"only remains of the testbed {state.cluster} are there: {_DOWN} removes them"
        )
    return state


def running(state: State) -> Mapping[str, int]:
    """How many processes run on every host."""
    return {
        host: len(system.processes_in(space))
        for host, space in zip(state.hosts, _host_spaces(state), strict=True)
    }


def execute(bed: str, host: str, command: Sequence[str]) -> NoReturn:
    """Become ``command`` on ``host``.

    Raises
    ------
    EdgeflowError
        When it cannot be.
    """
    state = require_up(bed)
    if host not in state.hosts:
        raise InputError(f"the testbed has no host {host}; it has {', '.join(state.hosts)}")
    environ = os.environ | {STATE_VARIABLE: str(folder(bed))}
    # In the place of the agent's shell, which would end at a signal and leave it behind.
    arguments = [str(_AGENT), host, f"exec {shlex.join(command)}"]
    sys.stdout.flush()
    os.execve(_AGENT, arguments, environ)


def run_job(
    bed: str, options: Sequence[str], *, network_only: bool, module: str = "edgeflow_mpi.run"
) -> NoReturn:
    """Become ``mpirun`` on the first host, with a rank of the job on every host.

    The ranks are as slow as the cluster's devices, unless ``network_only``. ``module`` is the
    job's; it gets ``options`` after what makes ranks slow.
    """
    state = require_up(bed)
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise ClusterError("there is no mpirun on PATH: run launch/setup.sh first")
    slow = () if network_only else ("--emulate", str(cluster_file(bed, state)))
    _leave_out(_HARMLESS)
    execute(bed, state.hosts[0], [
        mpirun, "-hostfile", str(folder(bed) / "hostfile"),
        "--prtemca", "plm_ssh_agent", str(_AGENT),
        sys.executable, "-m", module, *slow, *options,
    ])  # fmt: skip


def _leave_out(words: str) -> None:
    """From now on lines with ``words`` do not reach standard error, of programs we become too."""
    # As text: MPI's last words of a rank that was killed have a zero byte in them.
    command = ["grep", "--text", "--line-buffered", "-v", "-F", words]
    # A session of its own: on Ctrl-C it must last until everybody else has spoken.
    grep = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True
    )
    assert grep.stdin is not None
    os.dup2(grep.stdin.fileno(), sys.stderr.fileno())
