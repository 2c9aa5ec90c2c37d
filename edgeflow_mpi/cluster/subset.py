"""Some of a profile's devices, as if there were no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgeflow_mpi.cluster.profile import Profile


def subset(profile: Profile, ranks: Sequence[int]) -> Profile:
    """The profile of the devices ``ranks``, which are its ranks 0, 1, 2, ... in that order."""
    place = {rank: k for k, rank in enumerate(ranks)}
    return replace(
        profile,
        devices=tuple(profile.devices[rank] for rank in ranks),
        costs=tuple(profile.costs[rank] for rank in ranks),
        links={
            (place[i], place[j]): link
            for (i, j), link in profile.links.items()
            if i in place and j in place
        },
        stretches=tuple(profile.stretches[rank] for rank in ranks) if profile.stretches else (),
        message_cpu_s=(
            tuple(profile.message_cpu_s[rank] for rank in ranks) if profile.message_cpu_s else ()
        ),
    )
