"""What is read between two calls of a kernel, so that it finds the caches as in a request.

There a layer's input was made just now, and lies in the cache that cores share if it fits; its
weights were used a whole request ago, and come from memory. Where they are few, reading as much
as a core's own caches hold is enough. Where they are many, fetching them is a good part of the
time, and a kernel that is called again and again would find them in the shared cache: then as
much is read as that holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

_OWN_BYTES = 8 << 20  # more than a core's own caches, less than what takes long to read
_MOST_BYTES = 64 << 20
_HEAVY_BYTES = 1 << 20
_MARGIN = 1.25  # caches do not throw out exactly what was read longest ago
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Cooling:
    """Memory to read between calls.

    Parameters
    ----------
    shared_bytes : what the cache that cores share holds.
    """

    def __init__(self, shared_bytes: int) -> None:
        size = min(max(int(_MARGIN * shared_bytes), _OWN_BYTES), _MOST_BYTES)
        self._all = torch.ones(size // 4)
        self._little = self._all[: _OWN_BYTES // 4]

    def little(self) -> object:
        """Empty a core's own caches: to be called between any two calls of kernels."""
        return self._little.sum()

    def before_round(self, weights_bytes: int) -> Callable[[], object]:
        """What to call before kernels that have so many weights are called in turn, once each.

        Each of them has the weights in an order of its own, so once is enough for all.
        """
        return self._all.sum if weights_bytes >= _HEAVY_BYTES else _nothing


def _nothing() -> None:
    """Few weights come from memory while the kernel computes."""


def shared_cache_bytes(caches: Path = _CACHES) -> int:
    """The largest cache of the first processor; 0 where the system does not say."""
    found = 0
    for path in sorted(caches.glob("index*/size")):
        try:
            text = path.read_text().strip()
            found = max(found, int(text.rstrip("KMG")) * _UNITS.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return found
