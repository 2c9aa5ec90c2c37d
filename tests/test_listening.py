"""Sleep that ends when a message moves."""

from __future__ import annotations

import os
import socket
import time

from edgeflow_mpi.runtime import listening
from edgeflow_mpi.runtime.listening import Listener, tcp_connections


def test_what_arrives_ends_a_sleep_and_is_taken_care_of() -> None:
    near, far = socket.socketpair()
    with near, far:
        taken: list[bytes] = []
        listener = Listener(lambda: taken.append(near.recv(9)), lambda: [near.fileno()])
        listener.look_around()
        far.send(b"rows")
        before_s = time.monotonic()
        listener.sleep(30.0)
        assert taken == [b"rows"]
        assert time.monotonic() - before_s < 10


def test_without_connections_it_sleeps_as_long_as_it_is_told() -> None:
    progressed: list[None] = []
    listener = Listener(lambda: progressed.append(None), list)
    listener.look_around()
    before_s = time.monotonic()
    listener.pause(0.001)
    assert time.monotonic() - before_s >= 0.001
    assert progressed == [None]


def test_connections_to_other_hosts_are_found_and_nothing_is_left_open() -> None:
    # The whole of 127.0.0.0/8 is this host: two of its addresses stand for two hosts.
    near, far = socket.socketpair()
    with (
        near,
        far,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), source_address=("127.0.0.2", 0)) as other,
        socket.create_connection(server.getsockname()) as same,
    ):
        before = len(list(listening._DESCRIPTORS.iterdir()))
        found = tcp_connections()
        assert other.fileno() in found
        assert not {server.fileno(), same.fileno(), near.fileno()} & set(found)
        assert len(list(listening._DESCRIPTORS.iterdir())) == before
        os.fstat(other.fileno())
