"""A plan's unit tables on rank 0: those of an earlier job, or new ones."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from importlib import metadata

from edgeflow_mpi.cache import code_version
from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.cluster.profile_yaml import profile_text
from edgeflow_mpi.errors import PlanError, TableError
from edgeflow_mpi.graph.division import divided
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.units.tables import UnitTables
from edgeflow_mpi.units.text import check_ranks, tables_from_text, tables_to_text
from edgeflow_mpi.units.verify import verify_tables

_SEARCHING = "joint"
_DRAWING = (_SEARCHING, "random")
_LIBRARIES = ("numpy", "scipy", "numba")


def plan_for(
    context: Context, graph: Graph, needs: Needs, profile: Profile, partitioner: str
) -> UnitTables:
    """Verified tables of the named partitioner's plan for ``profile``.

    They are kept under everything that they depend on, the profile's numbers included, so that
    a second start of a job plans nothing. What is kept is verified like a file from elsewhere.
    """
    key = _key(context, graph, profile, partitioner)
    if not context.options.remeasure:
        with context.timed("partition"):
            found = _from_cache(context, graph, needs, key)
        if found is not None:
            context.progress.say(f"  plan ({partitioner}) reused (--remeasure plans again)")
            return found
    tables = _made(context, graph, needs, profile, partitioner)
    with suppress(TableError):  # of names that the text form does not take
        context.cache.keep_text(*_entry(key), tables_to_text(tables))
    return tables


def _made(
    context: Context, graph: Graph, needs: Needs, profile: Profile, partitioner: str
) -> UnitTables:
    # Late, because planners bring libraries that take half a second to import.
    with context.timed("import"):
        from edgeflow_mpi.partition.cost import predict
        from edgeflow_mpi.partition.engines import with_engines
        from edgeflow_mpi.partition.joint.search import Budget, Search
        from edgeflow_mpi.partition.plan import computing_ranks
        from edgeflow_mpi.partition.search import plan_model
        from edgeflow_mpi.units.compile import compile_tables

    options = context.options
    if partitioner == _SEARCHING:
        with context.timed("search"):
            Search.compile(context.progress)
    with context.timed("partition"), context.progress.step(f"plan ({partitioner})"):
        plan = plan_model(
            graph, needs, profile, partitioner,
            progress=context.progress, seed=options.seed,
            budget=Budget.of(options.plan_seconds, options.plan_simulations), measured=True,
        )  # fmt: skip
    graph, needs = divided(graph, needs, plan.division)
    # Published planners need lines; what to expect of a plan is told by the measurements.
    busy = profile.among(computing_ranks(graph, plan))
    forecast = predict(graph, needs, busy, plan, measured=True)
    plan = replace(plan, predicted_s=forecast.makespan_s)
    with context.timed("compile"):
        plan = with_engines(graph, profile, plan, options.engine, options.precision)
        tables = compile_tables(graph, needs, plan, tag_limit=context.tag_limit)
        verify_tables(graph, needs, tables, tag_limit=context.tag_limit)
    return tables


def _from_cache(context: Context, graph: Graph, needs: Needs, key: object) -> UnitTables | None:
    place = context.cache.place(*_entry(key))
    text = context.cache.read_text(*_entry(key))
    if text is None or place is None:
        return None
    try:
        tables = tables_from_text(text, str(place))
        check_ranks(tables, context.size)
        own = divided(graph, needs, tables.division)
        verify_tables(*own, tables, tag_limit=context.tag_limit)
    except (PlanError, TableError) as error:
        context.cache.ignore(place, str(error).split("\n", 1)[0])
        return None
    context.cache.used.append("plan")
    return tables


def _entry(key: object) -> tuple[str, object, str]:
    return "plan", key, ".txt"


def _key(context: Context, graph: Graph, profile: Profile, partitioner: str) -> object:
    """Everything that a plan and its tables depend on."""
    options = context.options
    numbers = replace(profile, created="")  # when they were measured changes no plan
    searching = (options.plan_seconds, options.plan_simulations, context.options.seed)
    return (
        graph.name,
        graph.fingerprint,
        partitioner,
        options.engine,
        options.precision,
        hashlib.sha256(profile_text(numbers, graph).encode()).hexdigest(),
        searching if partitioner == _SEARCHING else None,
        options.seed if partitioner in _DRAWING else None,
        context.tag_limit,
        code_version("spans", "graph", "kernels", "cluster", "partition", "units"),
        [(name, _version(name)) for name in _LIBRARIES],
    )


def _version(package: str) -> str:
    """Its version, without importing it; numba is not always there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
