"""One line of progress on standard error for every step a person waits for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """Where a stage says what it is doing; a stage must not print by itself."""

    def say(self, text: str) -> None:
        """A finished fact, on a line of its own."""

    def update(self, text: str) -> None:
        """How far the present step has come; may replace the last update."""

    def step(self, text: str) -> AbstractContextManager[None]:
        """A context manager around one step; its duration is shown at the end."""


class ConsoleProgress:
    """Progress for people: steps with durations; live updates only on a terminal."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._quiet = quiet
        self._pending = ""
        self._last_update_s = 0.0

    def say(self, text: str) -> None:
        if not self._quiet:
            self._clear()
            print(text, file=self._stream, flush=True)

    def update(self, text: str) -> None:
        now_s = time.monotonic()
        if self._quiet or now_s - self._last_update_s < (0.1 if self._live else 3.0):
            return
        self._last_update_s = now_s
        if self._live:
            self._stream.write(f"\r\x1b[K  … {text}")
            self._stream.flush()
            self._pending = text
        else:
            print(f"  … {text}", file=self._stream, flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        started_s = self._last_update_s = time.monotonic()
        if self._live and not self._quiet:
            self._stream.write(f"\r\x1b[K  … {text}")
            self._stream.flush()
            self._pending = text
        yield
        self.say(f"  {text}: {time.monotonic() - started_s:.1f} s")

    def _clear(self) -> None:
        if self._pending:
            self._stream.write("\r\x1b[K")
            self._pending = ""


class NoProgress:
    """Progress that goes nowhere: for tests and for ranks other than 0."""

    def say(self, text: str) -> None:
        pass

    def update(self, text: str) -> None:
        pass

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        yield
