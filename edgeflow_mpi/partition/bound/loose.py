"""When a layer is there that is divided otherwise than by rows, or behind such a layer.

A loose layer l of which that is so does one of these:

* it is computed by some of its output channels, or whole. That needs all of every input, except
  where channels need just the same channels of an input that is divided by channels, too;
* it is divided by its rows behind a whole layer. Before any row of it that one has been computed;
* it is a linear layer that is divided by its inputs, which needs some part of them, and no
  flattening in front of it.

So ``U_l``, before which nothing of it is begun, is the least over these three of what is needed
at the latest. Let T be the time of all of l on the fastest device for it, and let l's result take
s seconds on any link. Whoever has all of it computed a share f himself, which took f T, and
received the rest, unless f = 1:

    H_l = U_l + min over f of max(f T, latency + (1 - f) s)
        = U_l + T min(1, (latency + s) / (T + s)).

Times are for every last row, as in :mod:`.arrival`; minus infinity for what is not late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeflow_mpi.partition.bound.case import Case
from edgeflow_mpi.partition.timeline import Floats


@dataclass(frozen=True)
class Other:
    """Times of one layer that is not divided by rows alone: all arrays are [last row].

    Nothing of it is begun before ``first_s``; no device has all of it before ``all_s``, nor, if it
    is computed whole, before ``whole_s``.
    """

    first_s: Floats
    all_s: Floats
    whole_s: Floats


@dataclass(frozen=True)
class Read:
    """One input of a loose layer, with everything up to it divided by rows, and otherwise.

    ``first_s`` is when some device has what the first row of the layer needs, ``all_s`` when one
    has all. ``by_channel`` says that channels need the same channels alone.
    """

    first_s: Floats
    all_s: Floats
    by_channel: bool
    other: Other | None

    @property
    def some_s(self) -> Floats:
        """When some part is there, however it is divided."""
        return self.first_s if self.other is None else np.minimum(self.first_s, self.other.first_s)

    @property
    def everything_s(self) -> Floats:
        """When one device has all of it, however it is divided."""
        return self.all_s if self.other is None else np.minimum(self.all_s, self.other.all_s)

    @property
    def channel_s(self) -> Floats:
        """When one device has what one channel of the layer needs."""
        if self.other is None or not self.by_channel:
            return self.everything_s
        return np.minimum(self.all_s, self.other.first_s)


def otherwise(case: Case, index: int, reads: Sequence[Read]) -> Other:
    """U and H of a loose layer with these inputs."""
    complete_s = _latest([read.everything_s for read in reads])
    first_s = _latest([read.channel_s for read in reads])
    for k, read in enumerate(reads):
        if read.other is not None:  # a whole layer, and rows of this one behind it
            rest = [other.some_s for i, other in enumerate(reads) if i != k]
            first_s = np.minimum(first_s, _latest([read.other.whole_s, *rest]))
    if index in case.by_inputs:
        first_s = np.minimum(first_s, _latest([read.some_s for read in reads]))
    begun_s = first_s
    if index in case.spared:
        begun_s = np.minimum(first_s, _latest([read.some_s for read in reads]))
    layer = case.layers[index]
    whole_s = float(case.least_s(index, layer.rows))
    sent_s = layer.out.size_bytes * case.byte_s
    share = 1.0
    if whole_s > 0.0:
        share = min(1.0, (case.latency_s + sent_s) / (whole_s + sent_s))
    return Other(begun_s, first_s + share * whole_s, complete_s + whole_s)


def _latest(times_s: Sequence[Floats]) -> Floats:
    found: Floats = np.max(np.array(times_s), axis=0)
    return found
