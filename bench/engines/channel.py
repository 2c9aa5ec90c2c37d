"""Orders to a contender and its replies: one JSON object a line over a Unix socket.

A process that waits for its next line is asleep in the kernel. Standard input and output would
not do: mpirun passes them on in its own time, and engines print to them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

Message = dict[str, Any]
_LOOK_S = 0.2


class ChannelError(Exception):
    """The other side is gone, or has not answered in time."""


class Channel:
    """One end of a conversation; both sides may send and receive."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    @classmethod
    def connect(cls, address: Path) -> Channel:
        """Reach whoever listens at ``address``."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(address))
        return cls(connection)

    def send(self, message: Message) -> None:
        """Hand over one message.

        Raises
        ------
        ChannelError
            If the other side is gone.
        """
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ChannelError(str(error)) from error

    def receive(
        self, timeout_s: float | None = None, alive: Callable[[], bool] = lambda: True
    ) -> Message:
        """The next message; asleep until it comes.

        Parameters
        ----------
        timeout_s : None waits for ever.
        alive : looked at a few times a second, where there is a ``timeout_s``.

        Raises
        ------
        ChannelError
            If the other side has closed, is no longer alive, or takes too long.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._connection.settimeout(None if deadline_s is None else _LOOK_S)
        while b"\n" not in self._received:
            try:
                piece = self._connection.recv(1 << 16)
            except TimeoutError:
                assert deadline_s is not None
                if not alive():
                    raise ChannelError("it has ended") from None
                if time.monotonic() > deadline_s:
                    raise ChannelError(f"no answer for {timeout_s:g} s") from None
                continue
            except OSError as error:
                raise ChannelError(str(error)) from error
            if not piece:
                raise ChannelError("it has closed the connection")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def close(self) -> None:
        self._connection.close()


class Listener:
    """Where the processes of a contender report; its address is a file that goes at the end."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(address))
        self._socket.listen()
        self._socket.settimeout(_LOOK_S)

    def accept(self, timeout_s: float, alive: Callable[[], bool]) -> Channel:
        """The next process that connects.

        Raises
        ------
        ChannelError
            If nobody does while ``alive``, or within ``timeout_s``.
        """
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                if not alive():
                    raise ChannelError("it has ended") from None
                continue
            connection.setblocking(True)
            return Channel(connection)
        raise ChannelError(f"not ready after {timeout_s:g} s")

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            self._address.unlink()
