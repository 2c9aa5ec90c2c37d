"""How much of the messages' time is hidden behind computation, over TCP on this machine.

``python -m bench.overlap`` runs the same job with Open MPI's progress thread and without it, over
TCP in place of shared memory, and says what share of the messages' time (by the fit of their
links) ranks computed meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.mpirun import mpirun
from edgeflow_mpi.errors import EdgeflowError
from edgeflow_mpi.report.files import require_writable, write_file

WAYS = ("on", "off")


def describe(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for the progress thread on, and one for off: medians over the rounds."""
    lines = [f"{found[0]['model']} on {found[0]['ranks']} ranks over TCP"]
    for way in WAYS:
        rounds = [each for each in found if each["progress_thread"] == (way == "on")]
        latency, transfer, exposed, hidden = (
            statistics.median(each[key] for each in rounds)
            for key in ("latency_ms", "transfer_ms", "exposed_ms", "hidden_share")
        )
        lines.append(
            f"  progress thread {way:3}: latency {latency:.1f} ms; messages {transfer:.2f} ms, "
            f"{exposed:.2f} ms of it waited for: {100 * hidden:.0f} % hidden"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.overlap",
        description="The share of the messages' time that is hidden behind computation.",
        epilog="What else is given goes to the jobs, such as --model or --partitioner.",
        allow_abbrev=False,
    )
    parser.add_argument("--ranks", type=int, default=4, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="of both ways (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options, rest = _parser().parse_known_args(argv)
    found = []
    try:
        if options.ranks < 2 or options.rounds < 1:
            raise EdgeflowError("--ranks must be at least 2, and --rounds at least 1")
        if options.json is not None:
            require_writable(options.json, "the results")
        environ = os.environ | {"OMPI_MCA_btl": "tcp,self"}
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "found.json"
            for _ in range(options.rounds):
                for way in WAYS:
                    job = [str(results), "--progress-thread", way, *rest]
                    command = mpirun(options.ranks, "bench.overlap_job", *job)
                    done = subprocess.run(command, check=False, env=environ)
                    if done.returncode:
                        return done.returncode
                    found.append(json.loads(results.read_text()))
        print(describe(found))
        if options.ranks > (os.cpu_count() or 1) and "--emulate" not in rest:
            print("  ranks share cores: what they wait for is a core as often as a message")
        if options.json is not None:
            text = json.dumps(found)
            write_file(options.json, "the results", lambda file: file.write(text.encode()))
    except EdgeflowError as error:
        print(f"bench.overlap: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
