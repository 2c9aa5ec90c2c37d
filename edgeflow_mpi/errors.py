"""Every failure a user can cause or meet, as one clear sentence.

The text of an :class:`EdgeflowError` is printed as it is, without a traceback, so it
must say what was wrong, where, and what to do.
"""

from __future__ import annotations


class EdgeflowError(Exception):
    """A failure that is explained to the user in one sentence.

    Attributes
    ----------
    shared : bool
        Whether every rank of the job raises it too, as they have agreed: one of them then says
        it and all can leave in order. After any other failure the job must be aborted, because
        ranks that know nothing of it wait for this one.
    """

    shared = False


class ModelError(EdgeflowError):
    """The model or its weights cannot be loaded, exported or understood."""


class InputError(EdgeflowError):
    """An input file or a command-line value cannot be used."""


class ProfileError(EdgeflowError):
    """A profile is malformed or was measured for something else."""


class PlanError(EdgeflowError):
    """A plan is malformed, infeasible, or made for something else."""


class TableError(EdgeflowError):
    """Unit tables are inconsistent with each other or with the graph."""


class HostfileError(EdgeflowError):
    """A hostfile cannot be read or would start the wrong ranks."""


class ClusterError(EdgeflowError):
    """The ranks of a job cannot work together."""


class RuntimeFailure(EdgeflowError):
    """A rank failed, or stopped making progress, while a request was under way."""


class StallError(RuntimeFailure):
    """Nothing has arrived here for too long; the cause is some other rank, or the network.

    Attributes
    ----------
    waits_for : int or None
        The rank whose message does not come, where it is known.
    """

    def __init__(self, sentence: str, waits_for: int | None = None) -> None:
        super().__init__(sentence)
        self.waits_for = waits_for
