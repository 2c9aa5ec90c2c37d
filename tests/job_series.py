"""Many jobs one after the other in the same processes: MPI and torch start once for all.

Every rank runs ``python tests/job_series.py FOLDER``. FOLDER/jobs.json lists for each job its
options and, where a rank is to go wrong, its number and how; what a rank printed and returned
comes into FOLDER/JOB.RANK.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgeflow_mpi.run import main as run
from tests.job_sabotage import sabotage

if TYPE_CHECKING:
    from edgeflow_mpi.job.context import Context
    from edgeflow_mpi.model.load import LoadedModel


def remember_models() -> None:
    """Load every model once for all jobs; what cannot be loaded is tried by each."""
    from edgeflow_mpi.job import loading  # the first job has imported torch, on its cores

    load, loaded = loading._load, {}

    def load_once(context: Context) -> LoadedModel:
        options = context.options
        key = (options.model, options.weights, options.input_shapes, options.seed)
        if key in loaded:
            context.progress.say(f"  construct {options.model}: loaded by an earlier job")
        else:
            loaded[key] = load(context)
        return loaded[key]

    loading._load = load_once


def main(folder: Path) -> None:
    rank = None
    for index, (options, broken) in enumerate(json.loads((folder / "jobs.json").read_text())):
        out, err = io.StringIO(), io.StringIO()
        began_s = time.monotonic()
        with contextlib.ExitStack() as stack:
            if broken is not None and broken[0] == rank:
                stack.enter_context(sabotage(broken[1]))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            status = run(options)
        outcome = {
            "status": status,
            "stdout": out.getvalue(),
            "stderr": err.getvalue(),
            "seconds": time.monotonic() - began_s,
        }
        if rank is None:
            remember_models()
        from mpi4py import MPI  # the first job has started it, with its settings

        rank = MPI.COMM_WORLD.rank
        (folder / f"{index}.{rank}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
