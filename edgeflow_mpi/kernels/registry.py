"""The engines there are, in one place."""

from __future__ import annotations

from functools import cache

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.kernels.aten import Aten
from edgeflow_mpi.kernels.channelwise.engine import Channelwise
from edgeflow_mpi.kernels.direct.engine import Direct
from edgeflow_mpi.kernels.engine import Engine
from edgeflow_mpi.kernels.onednn import OneDnn
from edgeflow_mpi.kernels.pointwise.engine import Pointwise
from edgeflow_mpi.kernels.winograd.engine import Winograd

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (Winograd(), Pointwise(), Channelwise(), Direct(), OneDnn(), Aten())
}
"""By name. Where nothing was measured the first that is available and can do a layer does it;
the last can do all."""


@cache
def usable(name: str) -> bool:
    """Whether the engine works on this machine (found out once).

    Raises
    ------
    InputError
        If there is no such engine.
    """
    if name not in ENGINES:
        raise InputError(f"there is no engine {name!r} (there are {', '.join(ENGINES)})")
    return ENGINES[name].available()


def usable_engines() -> tuple[str, ...]:
    """Names of the engines that work on this machine, in the order of :data:`ENGINES`."""
    return tuple(name for name in ENGINES if usable(name))
