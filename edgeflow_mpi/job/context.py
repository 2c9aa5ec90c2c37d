"""What every stage of the job needs to know about this rank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from edgeflow_mpi.cache import Cache, default_cache_dir
from edgeflow_mpi.cluster.affinity import Affinity
from edgeflow_mpi.job.options import Options
from edgeflow_mpi.job.stall import Pulse
from edgeflow_mpi.progress import Progress

ANSWER = "answer"
"""Not a stage but their end: seconds from the command to the first answer."""
BASELINE = "baseline"
"""The stage that makes the single device ready, which a user's first answer does not need."""


@dataclass(frozen=True)
class Context:
    """This rank's view of the job.

    ``comm`` is the job's communicator (mpi4py's; not imported here). ``progress`` speaks on
    rank 0 only. ``command_s`` is the moment of ``time.monotonic`` at which the job was started.
    ``timings_s`` collects the duration of the stages up to the first answer, ``notes`` sentences
    that the result must not be read without.
    """

    options: Options
    comm: Any
    affinity: Affinity
    progress: Progress
    mpi_library: str
    tag_limit: int
    command_s: float
    timings_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        return int(self.comm.Get_rank())

    @property
    def size(self) -> int:
        return int(self.comm.Get_size())

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which has the model, the inputs and the plan."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """Cores of this rank's host that the job may use."""
        return max(len(self.affinity.host_cores), 1)

    @cached_property
    def cache(self) -> Cache:
        """What earlier jobs left; used by rank 0 alone."""
        folder = (self.options.cache or default_cache_dir()) if self.options.caching else None
        return Cache(folder, self.progress)

    @cached_property
    def pulse(self) -> Pulse:
        """Rank 0's signs of life."""
        return Pulse(self.comm, self.options.timeout_s)

    def warn(self, sentence: str) -> None:
        """Say it now, and again beside the result."""
        self.progress.say(f"warning: {sentence}")
        self.notes.append(sentence)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the body's duration to ``timings_s[stage]``, unless there was an answer before."""
        if ANSWER in self.timings_s:
            yield
            return
        started_s = time.monotonic()
        yield
        spent_s = time.monotonic() - started_s
        self.timings_s[stage] = self.timings_s.get(stage, 0.0) + spent_s

    def answered(self) -> None:
        """Take the time of the first answer; what is done for the baseline alone is left out."""
        spent_s = time.monotonic() - self.command_s
        self.timings_s.setdefault(ANSWER, spent_s - self.timings_s.get(BASELINE, 0.0))
