"""The profile of a job: from a file, from the cache, or measured now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

import edgeflow_mpi
from edgeflow_mpi.cache import Cache, code_version
from edgeflow_mpi.cluster.agree import agreed
from edgeflow_mpi.cluster.cluster_file import cluster_profile
from edgeflow_mpi.cluster.comm import PointToPoint
from edgeflow_mpi.cluster.devices import gather_devices
from edgeflow_mpi.cluster.emulation import Emulator
from edgeflow_mpi.cluster.engines import engines_of_ranks
from edgeflow_mpi.cluster.links import measure_links
from edgeflow_mpi.cluster.measure import distinct_layers, measure_compute
from edgeflow_mpi.cluster.profile import Device, Profile
from edgeflow_mpi.cluster.profile_yaml import (
    FORMAT,
    load_profile,
    parse_profile,
    profile_text,
    save_profile,
)
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.kernels.names import AUTO
from edgeflow_mpi.progress import Progress


def profile_for(
    comm: PointToPoint,
    graph: Graph,
    needs: Needs,
    *,
    profile_path: Path | None = None,
    save_path: Path | None = None,
    cache: Cache,
    remeasure: bool = False,
    engine: str = AUTO,
    precision: str = "fp32",
    progress: Progress,
) -> Profile | None:
    """The profile of ``graph`` on the ranks of ``comm``; collective.

    Parameters
    ----------
    comm
        All its ranks must call this, with nothing else under way on it and torch's number
        of threads set.
    graph, needs
        The same on every rank.
    profile_path
        A file to use; nothing is measured then. Matters on rank 0 only, like the others
        below.
    save_path
        A file to write the profile to as well.
    cache
        Where measured profiles are kept.
    remeasure
        Whether to measure although the cache has a profile.
    engine
        The engine to measure, or ``auto`` for all that work on a rank; the same on all ranks.
    precision
        Which engines are among all, as for :func:`engines_of_ranks`.
    progress
        Of this rank: told what is measured, or where the profile comes from.

    Returns
    -------
    Profile or None
        The profile on rank 0, which plans; None on other ranks. It is the same whether it
        was measured just now or comes from the cache.

    Raises
    ------
    EdgeflowError
        The same on all ranks, when the file cannot be used or written, or measuring fails.
    """
    devices = gather_devices(comm, torch.get_num_threads())
    engines = engines_of_ranks(comm, engine, precision)
    key: object = None
    found: Profile | None = None
    with agreed(comm):
        if comm.Get_rank() == 0:
            key = _cache_key(graph, devices, engines)
            if profile_path is not None:
                found = load_profile(profile_path, graph=graph, devices=devices)
            elif not remeasure:
                found = _from_cache(cache, key, graph, devices)
    if not comm.bcast(found is not None, root=0):
        mine = engines[comm.Get_rank()]
        measured = _measure(comm, graph, needs, devices, mine, progress)
        if comm.Get_rank() == 0:
            # Through its text, so that a second run plans with the very same numbers.
            text = profile_text(measured, graph)
            found = parse_profile(text, "the measured profile", graph=graph, devices=devices)
            cache.keep_text(*_entry(key), text)
    with agreed(comm):
        if found is not None and save_path is not None:
            save_profile(found, save_path, graph=graph)
    return found


def emulated_profile(
    comm: PointToPoint,
    graph: Graph,
    emulator: Emulator,
    *,
    from_cluster: bool,
    links_from_cluster: bool,
    profile_path: Path | None,
    save_path: Path | None,
    progress: Progress,
) -> Profile | None:
    """The profile of ranks that stand for slower devices; collective, on rank 0 only.

    Parameters
    ----------
    emulator : calibrated; the costs of layers are what its units take.
    from_cluster : whether to take all from the cluster file in place of measuring.
    links_from_cluster : whether to take the links from it.
    profile_path, save_path : as in :func:`profile_for`.
    """
    hosts = [device.host for device in gather_devices(comm, 1)]
    devices = emulator.devices(hosts)
    found: Profile | None = None
    if profile_path is not None:
        with agreed(comm):
            if comm.Get_rank() == 0:
                found = load_profile(profile_path, graph=graph, devices=devices)
    elif from_cluster:
        found = replace(cluster_profile(emulator.spec, graph), devices=devices)
    else:
        started_s = time.monotonic()
        links = emulator.spec.links
        if not links_from_cluster:
            links = measure_links(comm, names=emulator.spec.names, progress=progress)
            progress.say(f"  {len(links)} links measured: {time.monotonic() - started_s:.1f} s")
        found = Profile(
            model=graph.name,
            fingerprint=graph.fingerprint,
            devices=devices,
            costs=emulator.costs(),
            links=links,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            versions=_versions(),
            network=emulator.spec.network,
            message_cpu_s=tuple(device.message_cpu_s for device in emulator.spec.devices),
        )
    with agreed(comm):
        if comm.Get_rank() == 0 and found is not None and save_path is not None:
            save_profile(found, save_path, graph=graph)
    return found if comm.Get_rank() == 0 else None


def _measure(
    comm: PointToPoint,
    graph: Graph,
    needs: Needs,
    devices: tuple[Device, ...],
    engines: Sequence[str],
    progress: Progress,
) -> Profile:
    started_s = time.monotonic()
    computation = measure_compute(comm, graph, needs, devices, engines=engines, progress=progress)
    computed_s = time.monotonic()
    progress.say(
        f"  {len(distinct_layers(graph))} layer shapes measured on {_count(devices, 'device')}: "
        f"{computed_s - started_s:.1f} s"
    )
    names = [device.name for device in devices]
    links = measure_links(comm, names=names, progress=progress)
    if links:
        progress.say(f"  {len(links)} links measured: {time.monotonic() - computed_s:.1f} s")
    return Profile(
        model=graph.name,
        fingerprint=graph.fingerprint,
        devices=devices,
        costs=computation.costs,
        links=links,
        stretches=computation.stretches,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        versions=_versions(),
    )


def _versions() -> tuple[tuple[str, str], ...]:
    return (("edgeflow_mpi", edgeflow_mpi.__version__), ("torch", str(torch.__version__)))


def _count(things: tuple[object, ...], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def _cache_key(
    graph: Graph, devices: tuple[Device, ...], engines: tuple[tuple[str, ...], ...]
) -> object:
    # Memory is left out: it changes with every update of a kernel, but no time does. Engines come
    # and go with the packages they need.
    hardware = [(device.name, device.host, device.cpu, device.threads) for device in devices]
    code = code_version("kernels", "cluster")
    return (FORMAT, graph.fingerprint, hardware, _versions(), code, engines)


def _entry(key: object) -> tuple[str, object, str]:
    return "profile", key, ".yaml"


def _from_cache(
    cache: Cache, key: object, graph: Graph, devices: tuple[Device, ...]
) -> Profile | None:
    """What the cache has; an entry that cannot be read counts as none."""
    text, place = cache.read_text(*_entry(key)), cache.place(*_entry(key))
    if text is None or place is None:
        return None
    try:
        found = parse_profile(text, str(place), graph=graph, devices=devices)
    except ProfileError as error:
        cache.ignore(place, str(error))
        return None
    cache.used.append("profile")
    cache.progress.say(f"  profile of {found.created} reused (--remeasure measures again)")
    return replace(found, devices=devices)
