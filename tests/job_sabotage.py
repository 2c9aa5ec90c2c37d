"""Ways in which one rank goes wrong, each a context manager, and a job on such a rank.

``python tests/job_sabotage.py NAME OPTIONS`` is ``python -m edgeflow_mpi.run OPTIONS`` on a rank
that goes wrong in the way NAME.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

FOR_EVER_S = 10_000.0


def _fail(*args: Any, **kwargs: Any) -> NoReturn:
    raise ValueError("this rank is broken\nin some way")


def other_version() -> AbstractContextManager[Any]:
    return patch("edgeflow_mpi.__version__", "9.9.9")


def other_torch() -> AbstractContextManager[Any]:
    import torch

    return patch.object(torch, "__version__", "1.2.3")


def no_operator() -> AbstractContextManager[Any]:
    import torch

    return patch.object(torch.ops.aten, "add_", SimpleNamespace())


def no_torch() -> AbstractContextManager[Any]:
    return patch.dict(sys.modules, {"torch": None})


def cannot_measure() -> AbstractContextManager[Any]:
    return patch("edgeflow_mpi.cluster.measure.time_in_turn", _fail)


def cannot_prepare() -> AbstractContextManager[Any]:
    return patch("edgeflow_mpi.runtime.tasks.prepare", _fail)


def cannot_compute() -> AbstractContextManager[Any]:
    return patch(
        "edgeflow_mpi.runtime.tasks.prepare",
        lambda *arguments: SimpleNamespace(run=_fail, into=None, bind=None, engine="none"),
    )


def cannot_report() -> AbstractContextManager[Any]:
    """Fails between the stages, where no rank expects it."""
    return patch("edgeflow_mpi.job.main.rank_stats", _fail)


def stalls() -> AbstractContextManager[Any]:
    """Hangs in its first unit."""
    return _at_begin(lambda executor: time.sleep(FOR_EVER_S), request=3)


def stalls_last() -> AbstractContextManager[Any]:
    """Rank 0 hangs where the other ranks have nothing left to do."""
    from edgeflow_mpi.runtime.session import Session

    run_all = Session.run_all
    answers = 0

    def stalling(self: Session, requests: Any) -> Any:
        nonlocal answers
        for answer in run_all(self, requests):
            yield answer
            answers += 1
            if answers == 3:
                time.sleep(FOR_EVER_S)

    return patch.object(Session, "run_all", stalling)


def dies() -> AbstractContextManager[Any]:
    """Is killed in the middle of the requests, as by a lack of memory."""
    return _at_begin(lambda executor: os.kill(os.getpid(), signal.SIGKILL), request=3)


def _at_begin(action: Callable[[Any], None], *, request: int) -> AbstractContextManager[Any]:
    from edgeflow_mpi.runtime.executor import Executor

    begin = Executor.begin
    requests = 0

    def beginning(self: Executor, tensors: Any) -> None:
        nonlocal requests
        requests += 1
        begin(self, tensors)
        if requests == request:
            action(self)

    return patch.object(Executor, "begin", beginning)


def sabotage(name: str) -> AbstractContextManager[Any]:
    """The way of going wrong that is called ``name``."""
    found: AbstractContextManager[Any] = globals()[name]()
    return found


def main() -> int:
    name, *options = sys.argv[1:]
    from edgeflow_mpi.run import main as run

    with sabotage(name):
        return run(options)


if __name__ == "__main__":
    sys.exit(main())
