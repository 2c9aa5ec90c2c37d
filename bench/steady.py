"""Whether a job stays as fast and as small as it was: thousands of requests in one job.

``python -m bench.steady`` answers 2,000 requests on 2 ranks of this machine and says by how much
latency and each rank's memory differ between the first and the last quarter of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mpirun import mpirun
from edgeflow_mpi.errors import EdgeflowError
from edgeflow_mpi.report.files import require_writable, write_file


@dataclass(frozen=True)
class Drift:
    """Changes between the first and the last quarter of a job's blocks of requests.

    The first block is left out: it fills caches.

    Attributes
    ----------
    first_ms, last_ms : float
        Medians of the blocks' median latencies.
    grown_bytes : tuple of int
        By which each rank's resident memory grew, from the end of the first quarter to the end
        of the job.
    """

    first_ms: float
    last_ms: float
    grown_bytes: tuple[int, ...]

    @property
    def latency_share(self) -> float:
        """0.01 where the last requests took 1 % more than the first."""
        return self.last_ms / self.first_ms - 1

    @staticmethod
    def of(found: Mapping[str, Any]) -> Drift:
        """From what the job wrote."""
        medians_ms = found["median_ms"][1:] or found["median_ms"]
        quarter = max(len(medians_ms) // 4, 1)
        return Drift(
            statistics.median(medians_ms[:quarter]),
            statistics.median(medians_ms[-quarter:]),
            tuple(held[-1] - held[min(quarter, len(held) - 1)] for held in found["resident_bytes"]),
        )


def describe(found: Mapping[str, Any], drift: Drift) -> str:
    """What was found, in two sentences."""
    grown = ", ".join(f"{size / 1e6:+.1f}" for size in drift.grown_bytes)
    return (
        f"{found['model']} on {found['ranks']} ranks, {found['requests']} requests: median "
        f"latency {drift.first_ms:.2f} ms in the first quarter, {drift.last_ms:.2f} ms in the "
        f"last ({100 * drift.latency_share:+.1f} %). Resident memory of the ranks since the first "
        f"quarter: {grown} MB."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.steady",
        description="Latency and memory over thousands of requests of one job.",
        epilog="What else is given goes to the job, such as --model or --in-flight.",
        allow_abbrev=False,
    )
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--requests", type=int, default=2000, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options, rest = _parser().parse_known_args(argv)
    try:
        if min(options.ranks, options.requests) < 1:
            raise EdgeflowError("--ranks and --requests must be at least 1")
        if options.json is not None:
            require_writable(options.json, "the results")
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "found.json"
            job = [str(results), str(options.requests), *rest]
            done = subprocess.run(mpirun(options.ranks, "bench.steady_job", *job), check=False)
            if done.returncode:
                return done.returncode
            found = json.loads(results.read_text())
        drift = Drift.of(found)
        print(describe(found, drift))
        if options.json is not None:
            found |= {"latency_drift": drift.latency_share, "grown_bytes": list(drift.grown_bytes)}
            text = json.dumps(found)
            write_file(options.json, "the results", lambda file: file.write(text.encode()))
    except EdgeflowError as error:
        print(f"bench.steady: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
