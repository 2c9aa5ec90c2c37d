"""Large tensors on large pages of memory, where Linux gives them on request.

Weights of layers with few rows are read once per request and from memory: with pages of 4 kB a
core fetches 21 GB/s of them here and each of two at the same time 15, with pages of 2 MB 25 and
25 (AMD EPYC, two ranks of a core each).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def use_large_pages(environ: MutableMapping[str, str] = os.environ) -> None:
    """Ask torch to ask for them, from 2 MB on; a setting of the user's wins.

    Torch reads the variable when it first allocates memory.
    """
    environ.setdefault(_VARIABLE, "1")


__all__ = ["use_large_pages"]
