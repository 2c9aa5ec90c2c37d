"""The engines there are, in one place."""

from __future__ import annotations

from functools import cache

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.kernels.aten import Aten
from edgeflow_mpi.kernels.channelwise.engine import Channelwise
from edgeflow_mpi.kernels.direct.engine import Direct
from edgeflow_mpi.kernels.engine import Engine
from edgeflow_mpi.kernels.names import NARROW, PRECISIONS
from edgeflow_mpi.kernels.ncnn import Ncnn
from edgeflow_mpi.kernels.onednn import OneDnn, OneDnnBf16
from edgeflow_mpi.kernels.pointwise.engine import Pointwise
from edgeflow_mpi.kernels.winograd.engine import Winograd

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Winograd(), Pointwise(), Channelwise(), Direct(), OneDnn(), Ncnn(), OneDnnBf16(), Aten(),
    )
}  # fmt: skip
"""By name. Where nothing was measured the first that is available and can do a layer does it;
the last can do all. Those of :data:`~edgeflow_mpi.kernels.names.NARROW` are left out unless they
are asked for."""

_ERROR_BOUND = 1e-5
_ERROR_BOUNDS = {"bf16": 0.02}
"""By precision. 8 bits of every product make an error of some thousandths in a layer."""


def error_bound(name: str) -> float:
    """How far an engine's layer may be from plain torch's, relative to its largest value.

    1e-5, as far as a whole model's answer from float64, but for engines that round what they
    multiply.
    """
    return _ERROR_BOUNDS.get(NARROW.get(name, ""), _ERROR_BOUND)


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


def usable_engines(precision: str = "fp32") -> tuple[str, ...]:
    """Names of the engines that work on this machine, in the order of :data:`ENGINES`.

    ``precision`` is a key of :data:`~edgeflow_mpi.kernels.names.PRECISIONS`.
    """
    narrow = PRECISIONS[precision]
    return tuple(
        name for name in ENGINES if (name not in NARROW or name in narrow) and usable(name)
    )
