"""From options to a job that can answer requests: model, profile, plan, weights.

Every function here is collective. Rank 0 does the work that needs the model; its failures,
and anybody else's, become the same error on all ranks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import torch

import edgeflow_mpi
from edgeflow_mpi.cluster.agree import agreed, broadcast
from edgeflow_mpi.cluster.cluster_file import load_cluster
from edgeflow_mpi.cluster.devices import gather_devices
from edgeflow_mpi.cluster.emulation import Emulator, UnitTimes
from edgeflow_mpi.cluster.engines import engines_of_ranks
from edgeflow_mpi.cluster.hosts import crowding_warning
from edgeflow_mpi.cluster.prices import Prices
from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.cluster.profiling import emulated_profile, profile_for
from edgeflow_mpi.errors import ClusterError, InputError, PlanError, ProfileError
from edgeflow_mpi.graph.division import Division, divided, in_words
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.pixels import SCALE, takes_pixels, with_pixels
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.graph.wire import with_wire
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.loading import load_captured
from edgeflow_mpi.job.options import Options
from edgeflow_mpi.job.planning import plan_for
from edgeflow_mpi.kernels.names import AUTO
from edgeflow_mpi.model.images import normalised
from edgeflow_mpi.model.info import ModelInfo
from edgeflow_mpi.model.inputs import Request, check_readable, load_inputs
from edgeflow_mpi.partition.graphs import graph_for
from edgeflow_mpi.report.files import require_writable
from edgeflow_mpi.units.memory import tables_memory
from edgeflow_mpi.units.tables import UnitTables, on_engine
from edgeflow_mpi.units.text import check_ranks, load_tables, save_tables
from edgeflow_mpi.units.verify import verify_tables

if TYPE_CHECKING:
    from edgeflow_mpi.model.load import LoadedModel

Tensor = torch.Tensor


@dataclass(frozen=True)
class Task:
    """What is to be computed; ``model``, ``undivided``, ``weights``, ``requests`` on rank 0 only.

    ``undivided`` loads the model as plain torch, unless that was done before.

    The requests' tensors are as they travel; :meth:`plain` gives them as the model takes them.
    Where ranks stand for slower devices, ``emulator`` knows how long these take.
    """

    graph: Graph
    needs: Needs
    model: ModelInfo | None
    undivided: Callable[[], LoadedModel] | None
    weights: Mapping[str, Tensor]
    requests: tuple[Request, ...]
    emulator: Emulator | None = None

    def plain(self, request: Request) -> tuple[Tensor, ...]:
        """The request's tensors for the undivided model: pixels normalised. Rank 0 only."""
        assert self.model is not None
        if not self.pixels:
            return request.tensors
        assert self.model.preprocessing is not None
        return tuple(normalised(tensor, self.model.preprocessing) for tensor in request.tensors)

    def divided(self, division: Division) -> Task:
        """The task on the graph of a plan with this division."""
        if not division:
            return self
        graph, needs = divided(self.graph, self.needs, division)
        emulator = None if self.emulator is None else self.emulator.on(graph, needs)
        return replace(self, graph=graph, needs=needs, emulator=emulator)

    @property
    def pixels(self) -> bool:
        """Whether the image travels as 8-bit pixels."""
        return SCALE in self.graph.weight_specs


def check_ranks_agree(context: Context) -> tuple[str, ...]:
    """Host names by rank; refuses ranks that run different versions of this package."""
    mine = (socket.gethostname(), edgeflow_mpi.__version__, str(torch.__version__))
    with context.timed("ranks"):
        everyone = broadcast_all(context, mine)
    hosts = tuple(host for host, _, _ in everyone)
    _, version, torch_version = everyone[0]
    with agreed(context.comm):
        for rank, (host, other, _) in enumerate(everyone):
            if other != version and context.first:
                raise ClusterError(
                    f"rank {rank} ({host}) runs edgeflow_mpi {other} but rank 0 runs {version}: "
                    "install the same version on every device"
                )
    for rank, (host, _, other) in enumerate(everyone):
        if other != torch_version:
            context.warn(
                f"rank {rank} ({host}) has torch {other} but rank 0 has {torch_version}; "
                "answers may differ by rounding"
            )
    warning = crowding_warning(hosts, os.environ.get("EDGEFLOW_LOCAL") == "1")
    if warning is not None:
        context.progress.say(f"warning: {warning}")
    return hosts


def broadcast_all(context: Context, mine: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    """Everybody's value on every rank, in rank order."""
    with agreed(context.comm):
        pass  # whoever comes late is waited for without spinning
    return list(context.comm.allgather(mine))


def check_files(context: Context) -> UnitTables | None:
    """Find out what is wrong with files before the long work; a saved plan, on rank 0.

    Raises
    ------
    EdgeflowError
        On all ranks: a file to read is not there, one to write cannot be written, or the
        saved plan cannot be read or is for another number of ranks.
    """
    options = context.options
    results = {
        "the output": options.output,
        "the report": options.json,
        "the plan": options.save_plan,
        "the profile": options.save_profile,
    }
    saved: UnitTables | None = None
    with agreed(context.comm, "checking the files"):
        if context.first:
            for what, path in results.items():
                if path is not None:
                    require_writable(path, what)
            check_readable(options.inputs)
            if options.profile is not None and not options.profile.is_file():
                raise ProfileError(f"there is no profile {options.profile}")
            if options.plan is not None:
                saved = load_tables(options.plan)
                check_ranks(saved, context.size)
    return saved


def versions(context: Context) -> dict[str, str]:
    return {
        "edgeflow_mpi": edgeflow_mpi.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "mpi4py": metadata.version("mpi4py"),
        "mpi": context.mpi_library,
    }


def load_task(context: Context, saved: UnitTables | None = None) -> Task:
    """Rank 0 loads and captures the model; every rank gets the graph, without weights.

    The graph is the one that the plan is for, the one that is ``saved`` (on rank 0) or the one
    that is asked for.
    """
    options = context.options
    model: ModelInfo | None = None
    undivided: Callable[[], LoadedModel] | None = None
    weights: Mapping[str, Tensor] = {}
    requests: tuple[Request, ...] = ()

    def make() -> Graph:
        nonlocal model, undivided, weights, requests
        captured = load_captured(context)
        model, undivided = captured.info, captured.undivided
        graph, weights = captured.graph, captured.weights
        served = model
        if _as_pixels(options, model, graph):
            assert model.preprocessing is not None
            how = model.preprocessing
            graph, weights = with_pixels(graph, weights, how.mean, how.std)
            served = replace(model, inputs=(replace(model.inputs[0], dtype=torch.uint8),))
        requests = load_inputs(options.inputs or None, served)
        partitioner = options.partitioner if saved is None else saved.partitioner
        return graph_for(partitioner, with_wire(graph, options.wire))

    with context.timed("capture"):
        graph = broadcast(context.comm, make, "loading the model")
    needs = Needs(graph)
    with agreed(context.comm, "checking the plan"), context.timed("compile"):
        if saved is not None:
            own, its_needs = divided(graph, needs, saved.division)
            verify_tables(own, its_needs, saved, tag_limit=context.tag_limit)
    emulator = _make_emulator(context, graph, needs)
    return Task(graph, needs, model, undivided, weights, requests, emulator)


def _make_emulator(context: Context, graph: Graph, needs: Needs) -> Emulator | None:
    """How slow the ranks are to be, if ``--emulate`` says so; collective."""
    file = context.options.emulate
    if file is None:
        return None
    spec = broadcast(context.comm, lambda: load_cluster(file), "reading the cluster file")
    times: UnitTimes = "stated" if context.options.emulate_units == "stated" else "kernels"
    engines = engines_of_ranks(context.comm, context.options.engine, context.options.precision)
    # All ranks are on one machine, so that they have the same engines.
    prices = Prices(engines[0], context.cache, fresh=context.options.remeasure)
    emulator = Emulator(spec, graph, needs, prices, times)
    with context.timed("profile"), context.progress.step("kernels measured for slower devices"):
        warning = emulator.calibrate(context.comm, context.cores, context.progress)
    if warning is not None:
        context.warn(warning)
    return emulator


def _as_pixels(options: Options, model: ModelInfo, graph: Graph) -> bool:
    """Whether the input is to travel as 8-bit pixels.

    Raises
    ------
    InputError
        If the user asks for pixels where the input is no image.
    """
    arrays = any(path.suffix in (".npy", ".npz") for path in options.inputs)
    possible = model.preprocessing is not None and takes_pixels(graph)
    if options.input_dtype == "uint8" and not possible:
        raise InputError(
            f"--input-dtype uint8 is for models that take one image, which {model.name} does "
            "not: leave the option out"
        )
    return possible and (
        options.input_dtype == "uint8" or (options.input_dtype == "auto" and not arrays)
    )


def make_profile(context: Context, task: Task) -> Profile | None:
    """The profile, on rank 0; None elsewhere, and where a saved plan makes it needless."""
    options = context.options
    with context.timed("profile"):
        if task.emulator is not None:
            return emulated_profile(
                context.comm,
                task.graph,
                task.emulator,
                from_cluster=options.profile_from_cluster,
                links_from_cluster=options.links_from_cluster,
                profile_path=options.profile,
                save_path=options.save_profile,
                progress=context.progress,
            )
        return profile_for(
            context.comm,
            task.graph,
            task.needs,
            profile_path=options.profile,
            save_path=options.save_profile,
            cache=context.cache,
            remeasure=options.remeasure,
            engine=options.engine,
            precision=options.precision,
            progress=context.progress,
        )


def make_tables(
    context: Context, task: Task, profile: Profile | None, saved: UnitTables | None
) -> UnitTables:
    """Unit tables, verified, on every rank: ``saved`` ones, or of the plan that is asked for.

    Saved ones must have gone through :func:`load_task`, which verifies them.
    """
    options = context.options
    if options.engine != AUTO or options.precision != "fp32":
        engines_of_ranks(context.comm, options.engine, options.precision)

    def make() -> UnitTables:
        tables = saved or plan_tables(context, task, profile, options.partitioner)
        if saved is not None and options.engine != AUTO:
            tables = on_engine(task.divided(saved.division).graph, saved, options.engine)
        if options.save_plan is not None:
            save_tables(tables, options.save_plan)
        return tables

    tables = broadcast(context.comm, make, "making the plan")
    if tables.division:
        context.notes.append(f"not divided by rows: {in_words(tables.division)}")
    return tables


def check_memory(context: Context, task: Task, tables: UnitTables, profile: Profile | None) -> None:
    """Refuse a plan that needs more memory on some rank than it has; collective.

    Raises
    ------
    PlanError
        On all ranks; the sentence has the numbers.
    """
    found = gather_devices(context.comm, context.affinity.threads)
    with agreed(context.comm, "checking the memory"):
        if not context.first:
            return
        devices = found if profile is None else profile.devices
        graph = task.divided(tables.division).graph
        for rank, one in enumerate(tables_memory(graph, tables)):
            need = one.for_requests(context.options.in_flight)
            if need.peak_bytes > devices[rank].memory_bytes:
                raise PlanError(
                    f"the plan needs {need.peak_bytes / 1e6:.0f} MB on rank {rank} "
                    f"({devices[rank].name}), which has {devices[rank].memory_bytes / 1e6:.0f} MB: "
                    "use more ranks, another partitioner, or a plan that gives it fewer layers"
                )


def plan_tables(
    context: Context, task: Task, profile: Profile | None, partitioner: str
) -> UnitTables:
    """Plan, compile and verify on rank 0, or take what an earlier job has planned."""
    assert profile is not None
    return plan_for(context, task.graph, task.needs, profile, partitioner)
