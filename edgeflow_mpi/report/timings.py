"""Where the time from the command to the first answer went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SHOWN = 0.05
"""Stages below this share of the whole are summed up as the rest."""

_WORDS = {
    "launch": "launcher",
    "import": "imports",
    "mpi": "MPI",
    "ranks": "waiting for ranks",
    "capture": "model",
    "profile": "profile",
    "search": "compiling the planner",
    "partition": "plan",
    "compile": "unit tables",
    "distribute": "weights",
    "prepare": "kernels and buffers",
    "request": "the request",
}


@dataclass(frozen=True)
class Timings:
    """Seconds that the stages of a job took on rank 0, in their order; 0 for one not run.

    Attributes
    ----------
    launch_s
        From the launcher's start to that of the process.
    import_s
        Python, this package, torch.
    mpi_s
        The start of MPI.
    ranks_s
        Waiting until all other ranks had come so far.
    capture_s
        The model's layers, weights and inputs.
    profile_s
        Measuring devices and links, or reading what was measured.
    search_s
        Compiling the planner, which is kept.
    partition_s
        Making the plan, or reading it.
    compile_s
        Unit tables, and their verification.
    distribute_s
        Weights, to the ranks that need them.
    prepare_s
        Kernels and buffers, on all ranks.
    request_s
        The first request.
    first_answer_s
        From the command to the first answer, everything included but what was done only to
        have the single device to compare with; None where nobody took the time.
    reused
        What was taken over from earlier jobs, such as ``profile``.
    """

    launch_s: float = 0.0
    import_s: float = 0.0
    mpi_s: float = 0.0
    ranks_s: float = 0.0
    capture_s: float = 0.0
    profile_s: float = 0.0
    search_s: float = 0.0
    partition_s: float = 0.0
    compile_s: float = 0.0
    distribute_s: float = 0.0
    prepare_s: float = 0.0
    request_s: float = 0.0
    first_answer_s: float | None = None
    reused: tuple[str, ...] = ()

    @classmethod
    def of(cls, stages_s: Mapping[str, float], reused: tuple[str, ...] = ()) -> Timings:
        """From seconds by stage, ``answer`` being the moment of the first one."""
        given = {f"{stage}_s": stages_s.get(stage, 0.0) for stage in _WORDS}
        return cls(**given, first_answer_s=stages_s.get("answer"), reused=reused)

    @property
    def stages_s(self) -> Mapping[str, float]:
        """Stage -> seconds, in their order."""
        return {stage: getattr(self, f"{stage}_s") for stage in _WORDS}

    @property
    def text(self) -> str:
        """One sentence with the stages that matter; empty where the whole is not known."""
        whole_s = self.first_answer_s
        if whole_s is None:
            return ""
        shown = {k: s for k, s in self.stages_s.items() if s >= _SHOWN * whole_s}
        parts = [f"{_WORDS[stage]} {_seconds(stage_s)}" for stage, stage_s in shown.items()]
        rest_s = whole_s - sum(shown.values())
        if parts and rest_s >= 0:
            parts.append(f"the rest {_seconds(rest_s)}")
        kept = f", {_listed(self.reused)} from earlier jobs" if self.reused else ""
        return f"{_seconds(whole_s)} from the command to the first answer{kept}: {', '.join(parts)}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _seconds(value_s: float) -> str:
    return f"{value_s:.1f} s" if value_s >= 0.1 else f"{value_s:.2f} s"
