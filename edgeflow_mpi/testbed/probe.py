"""Latency and bandwidth between two hosts of a testbed, with plain TCP sockets.

A socket belongs to the network namespace in which it was made, whoever uses it later. So both
ends are made here, by entering the two hosts in turn; a second process then answers on one end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeflow_mpi.errors import ClusterError

_PORT = 5201
_ROUNDS = 100
_TIMEOUT_S = 20.0
_SECONDS_OF_DATA = 0.3
_LEAST_BYTES, _MOST_BYTES = 200_000, 1 << 26
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Probed:
    """One direction of a link: half a round trip of one byte, and the rate of a long message."""

    latency_s: float
    bandwidth_bytes_s: float


def probe(sender: Path, receiver: Path, address: str, expected_bytes_s: float) -> Probed:
    """Measure the link between two network namespaces.

    Parameters
    ----------
    sender, receiver : the namespaces' files.
    address : the receiver's.
    expected_bytes_s : what the link should carry; decides how much is sent.

    Raises
    ------
    ClusterError
        When they cannot be entered, or cannot reach each other.
    """
    size = min(max(round(expected_bytes_s * _SECONDS_OF_DATA), _LEAST_BYTES), _MOST_BYTES)
    try:
        near, far = _connected(sender, receiver, address)
        with near, far:
            command = [sys.executable, "-m", __name__, str(far.fileno()), str(size)]
            with subprocess.Popen(command, pass_fds=[far.fileno()]) as other:
                try:
                    return _measure(near, size)
                finally:
                    near.close()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        other.wait(1)
                    other.kill()
    except OSError as error:
        raise ClusterError(
            f"nothing comes through from {sender.name} to {receiver.name}: {error}"
        ) from None


def _measure(near: socket.socket, size: int) -> Probed:
    trips_s = []
    for _ in range(_ROUNDS):
        started_s = time.perf_counter()
        near.sendall(b"?")
        _receive(near, 1)
        trips_s.append(time.perf_counter() - started_s)
    latency_s = statistics.median(trips_s) / 2
    started_s = time.perf_counter()
    near.sendall(bytes(size))
    _receive(near, 1)
    passed_s = time.perf_counter() - started_s
    return Probed(latency_s, size / max(passed_s - 2 * latency_s, 1e-9))


def _answer(far: socket.socket, size: int) -> None:
    """The other process: every byte is answered, then one answer to ``size`` of them."""
    for _ in range(_ROUNDS):
        _receive(far, 1)
        far.sendall(b"!")
    _receive(far, size)
    far.sendall(b"!")


def _receive(end: socket.socket, size: int) -> None:
    while size:
        got = len(end.recv(min(size, 1 << 18)))
        if not got:
            raise ConnectionError("the connection was closed")
        size -= got


def _connected(sender: Path, receiver: Path, address: str) -> tuple[socket.socket, socket.socket]:
    with _inside(receiver):
        listener = socket.create_server((address, _PORT), reuse_port=True)
    with listener:
        with _inside(sender):
            near = socket.create_connection((address, _PORT), _TIMEOUT_S)
        listener.settimeout(_TIMEOUT_S)
        far, _ = listener.accept()
    for end in (near, far):
        end.settimeout(_TIMEOUT_S)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


@contextlib.contextmanager
def _inside(namespace: Path) -> Iterator[None]:
    """The calling thread's sockets are made in ``namespace`` for a while."""
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        there = os.open(namespace, os.O_RDONLY)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(descriptor: int) -> None:
    # os.setns is there from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    with (
        # On Ctrl-C whoever measures speaks for both.
        contextlib.suppress(ConnectionError, KeyboardInterrupt),
        socket.socket(fileno=int(sys.argv[1])) as _end,
    ):
        _end.settimeout(_TIMEOUT_S)
        _answer(_end, int(sys.argv[2]))
