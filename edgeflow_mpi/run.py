"""The MPI job: ``mpirun -hostfile edges.txt python -m edgeflow_mpi.run``.

Started without mpirun it is a job of one rank. This module owns MPI's start and end and the
way errors leave: one sentence, from one rank, and a non-zero status of all.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeflow_mpi.cluster.affinity import Affinity, apply_threads, widen_affinity
from edgeflow_mpi.cluster.mpi_env import configure_mpi_environment, place_in_job
from edgeflow_mpi.cluster.pages import use_large_pages
from edgeflow_mpi.cluster.start import Start, find_start
from edgeflow_mpi.errors import EdgeflowError, InputError, StallError
from edgeflow_mpi.job.options import Options, parse_options
from edgeflow_mpi.job.stall import explain, patience_s, tell_and_listen
from edgeflow_mpi.progress import ConsoleProgress, NoProgress, Progress

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.job.serve import OpenTransport

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
DEBUG_VARIABLE = "EDGEFLOW_DEBUG"


def _answer(context: Context, open_transport: OpenTransport) -> int:
    with context.timed("import"):
        from edgeflow_mpi.job.main import run_job

    return run_job(context, open_transport)


def main(
    argv: Sequence[str] | None = None, job: Callable[[Context, OpenTransport], int] = _answer
) -> int:
    """Run the job on this rank; its exit status: 1 for a failure, 2 for a wrong command line.

    Parameters
    ----------
    argv : the job's options; None for the command line's.
    job : what to do between MPI's start and its end. It is called once the rank's cores and
        threads are settled, and must not have imported torch before.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no "×" shows "?"
    start = find_start()
    place = place_in_job()
    options: Options | None = None
    wrong: InputError | None = None
    text = io.StringIO()  # of --help and --version: argparse would print it on every rank
    try:
        with contextlib.redirect_stdout(text):
            options = parse_options(argv)
    except InputError as error:
        wrong = error
    except SystemExit:
        pass
    if options is None:
        configure_mpi_environment()
    else:
        progress_thread = options.progress_thread
        if progress_thread == "auto" and options.emulate is not None:
            progress_thread = "off"  # such a rank sleeps on its connections and moves what comes
        configure_mpi_environment(progress_thread=progress_thread, wait=options.wait)
    use_large_pages()
    # Before torch is imported: its thread pool is made for the cores it sees then.
    threads = None if options is None else options.threads
    affinity = widen_affinity(place.local_rank, place.local_size, threads=threads)
    before_mpi_s = time.monotonic()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        _print(f"{socket.gethostname()}: MPI cannot be loaded ({_first_line(error)}); {_INSTALL}")
        return FAILED
    mpi_s = time.monotonic() - before_mpi_s
    comm = MPI.COMM_WORLD
    if options is None:
        if comm.Get_rank() == 0:
            print(text.getvalue(), end="") if wrong is None else _print(str(wrong))
        return 0 if wrong is None else MISUSED
    if comm.Get_rank() == 0 and comm.Get_size() > 1:
        _speak_when_told_to_stop(comm)
    try:
        return _start(comm, options, affinity, job, start, mpi_s)
    except EdgeflowError as error:
        _debug(comm.Get_rank() == 0 or not error.shared or error.__cause__ is not None)
        if error.shared:
            if comm.Get_rank() == 0:
                _print(str(error))
            return FAILED
        _abort(comm, _traced(comm, error, options) if isinstance(error, StallError) else str(error))
    except KeyboardInterrupt:
        if comm.Get_size() > 1:
            comm.Abort(INTERRUPTED)
        return INTERRUPTED
    except ImportError as error:
        _debug(True)
        _abort(comm, f"{_first_line(error)}: {_INSTALL}")
    except Exception as error:  # noqa: BLE001 (a bug here must not hang the other ranks)
        _debug(True)
        _abort(comm, _bug(error))
    return FAILED


def _start(
    comm: Any,
    options: Options,
    affinity: Affinity,
    job: Callable[[Context, OpenTransport], int],
    start: Start,
    mpi_s: float,
) -> int:
    """Everything that needs torch; MPI took ``mpi_s`` to start."""
    from mpi4py import MPI

    apply_threads(affinity.threads)
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.runtime.mpi import MpiTransport

    progress: Progress = NoProgress()
    if comm.Get_rank() == 0:
        progress = ConsoleProgress(quiet=options.quiet)
    tag_limit = comm.Get_attr(MPI.TAG_UB)
    context = Context(
        options,
        comm,
        affinity,
        progress,
        MPI.Get_library_version().split("\n")[0].split(",")[0].rstrip("\0"),
        tag_limit if isinstance(tag_limit, int) else 32767,
        start.command_s,
    )
    context.timings_s["launch"] = start.process_s - start.command_s
    context.timings_s["mpi"] = mpi_s
    context.timings_s["import"] = time.monotonic() - start.process_s - mpi_s
    return job(context, lambda: MpiTransport(comm))


_LEAD_S = 0.2
_SPOKEN_TAG = 11
_INSTALL = "run ./launch/setup.sh on this machine, or install the missing package there"


def _abort(comm: Any, sentence: str) -> None:
    """Say what went wrong here, and end the ranks that know nothing of it.

    Where several ranks find the same thing at once, the lowest speaks and its abort silences
    the others.
    """
    rank = comm.Get_rank()
    time.sleep(min(0.3 * rank, 3.0))
    if comm.Get_size() == 1:
        _print(sentence)
    else:
        _print(f"rank {rank} ({socket.gethostname()}): {sentence}")
        if rank > 0:
            comm.isend(None, dest=0, tag=_SPOKEN_TAG)
        # The launcher passes what ranks print and that one aborts on by different ways: let the
        # sentence arrive before the launcher's own banner.
        time.sleep(_LEAD_S)
        comm.Abort(FAILED)


def _speak_when_told_to_stop(comm: Any) -> None:
    """Where another rank was killed, the launcher's banner does not say what that may mean."""

    def stop(number: int, frame: object) -> None:
        spoken, until_s = False, time.monotonic() + _LEAD_S
        with contextlib.suppress(Exception):  # whatever is left of MPI by now
            while not spoken and time.monotonic() < until_s:
                spoken = comm.iprobe(tag=_SPOKEN_TAG)
        if not spoken:
            _print(
                "stopped by the launcher: another rank ended without a word, killed perhaps for "
                "want of memory, or the job was cancelled"
            )
        os._exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _traced(comm: Any, error: StallError, options: Options) -> str:
    """What this rank waits for, and which rank is behind it."""
    waits = tell_and_listen(comm, error, patience_s(options.timeout_s))
    return explain(waits, comm.Get_rank(), str(error))


def _print(sentence: str) -> None:
    start = "\r\x1b[K" if sys.stderr.isatty() else ""  # over an unfinished line of progress
    # In one piece, or mpirun puts its own banner before the end of the line.
    sys.stderr.write(f"{start}edgeflow_mpi: {sentence}\n")
    sys.stderr.flush()


def _bug(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__} in {place.name} "
        f"({Path(place.filename).name}:{place.lineno}): {_first_line(error)} "
        f"({DEBUG_VARIABLE}=1 shows the traceback)"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _debug(wanted: bool) -> None:
    if wanted and os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
