"""Being told to end, in whatever way, is like Ctrl-C: what was begun is taken back."""

from __future__ import annotations

import signal


def end_as_on_interrupt() -> None:
    """From now on SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as SIGINT does.

    SIGHUP comes when a terminal is closed. Where it is ignored, as under nohup, it stays so.
    """
    for which in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(which) is not signal.SIG_IGN:
            signal.signal(which, signal.default_int_handler)
