"""Memory computed from a plan against the tensors that the runtime really makes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from planning_cases import cluster
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from edgeflow_mpi.cluster.cluster_file import cluster_profile, parse_cluster
from edgeflow_mpi.graph.local import piece_of
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.pixels import with_pixels
from edgeflow_mpi.kernels import prepare
from edgeflow_mpi.kernels.kept import kept_bytes, likely_kept_bytes
from edgeflow_mpi.kernels.registry import ENGINES, usable_engines
from edgeflow_mpi.partition.graphs import graph_for
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.search import PARTITIONERS, schemes
from edgeflow_mpi.runtime.distribute import needed_weights
from edgeflow_mpi.runtime.executor import Executor
from edgeflow_mpi.spans import Span, even
from edgeflow_mpi.units.buffers import fixed_layers
from edgeflow_mpi.units.memory import DeviceMemory, live_bytes, plan_memory, rank_memory
from edgeflow_mpi.units.precedence import Precedence
from edgeflow_mpi.units.tables import UnitTables
from tests.division_cases import divided, random_division
from tests.inprocess import Job, Model, build


def _plain(engines: tuple[str, ...]) -> tuple[str, ...]:
    """Those that keep weights as they are, in about as much memory."""
    return tuple(name for name in engines if name in ("onednn", "aten"))


class Tracker(TorchDispatchMode):
    """Counts the bytes of tensors that were made under it and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, size_bytes: int) -> None:
        self.now -= size_bytes


def _tensors(tree: object) -> list[torch.Tensor]:
    leaves = (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in leaves if not leaf.is_mkldnn]  # packed weights hide their memory


class Residual(nn.Module):
    """Residual blocks with squeeze and excitation, a classifier at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.back = nn.Conv2d(32, 16, 3, padding=1)
        self.squeeze = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.back(self.wide(x))
        y = y * self.squeeze(y.mean((2, 3)))[:, :, None, None]
        x = self.pool(torch.relu(x + y))
        x = torch.cat([x, torch.nn.functional.avg_pool2d(x, 3, 1, 1)], 1)
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Branches of different depth, joined; two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 1)
        self.b = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, (7, 1), padding=(3, 0))
        )
        self.c = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 8, 1), nn.Hardswish())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        joined = torch.cat([self.a(x), self.b(x), self.c(x)], 1)
        return joined, joined.amax((2, 3))


def residual() -> Model:
    return build(Residual(), torch.zeros(1, 3, 41, 36))


def on_pixels() -> Model:
    """The same on 8-bit pixels, which the first layer makes floats of."""
    model = residual()
    graph, weights = with_pixels(model.graph, model.weights, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    return replace(model, graph=graph, weights=weights, needs=Needs(graph))


def branches() -> Model:
    return build(Branches(), torch.zeros(1, 4, 19, 24))


MODELS: dict[str, Callable[[], Model]] = {
    "residual": residual,
    "pixels": on_pixels,
    "branches": branches,
}


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return MODELS[request.param]()


@dataclass(frozen=True)
class Held:
    """What a rank was to hold, knowing its kernels, and what it really held."""

    computed: DeviceMemory
    found: DeviceMemory


def measured(model: Model, plan: Plan) -> tuple[Held, ...]:
    """What every rank of an in-process job really holds."""
    job = Job(model, plan)
    inputs = [
        torch.zeros(layer.out.shape, dtype=getattr(torch, layer.out.dtype))
        for layer in model.graph.inputs
    ]
    job.run(*inputs)  # after which engines have their workspace
    trackers = [Tracker() for _ in job.executors]
    named = {layer.name: x for layer, x in zip(model.graph.inputs, inputs, strict=True)}
    with torch.no_grad():
        for rank, executor in enumerate(job.executors):
            executor.begin(named if rank == 0 else {})
        while not all(executor.finished for executor in job.executors):
            for executor, tracker in zip(job.executors, trackers, strict=True):
                with tracker:
                    executor.step()
    requests = sum(x.numel() * x.element_size() for x in inputs)
    precedence = Precedence(job.tables)
    return tuple(
        Held(
            replace(
                rank_memory(model.graph, job.tables, rank, precedence, executor.direct),
                live_bytes=_live_as_run(model, executor),
            ),
            DeviceMemory(
                _weights_bytes(model, job.tables, rank),
                executor.kept_bytes,
                executor.storage.memory.numel(),
                trackers[rank].peak + (requests if rank == 0 else 0),
            ),
        )
        for rank, executor in enumerate(job.executors)
    )


def _live_as_run(model: Model, executor: Executor) -> int:
    """What is alive beside the arena with units in the order in which they ran."""
    ran = sorted(executor.trace(), key=lambda entry: entry[1])
    units = [unit for unit, _, _ in ran]
    direct = frozenset(executor.direct)
    loose = frozenset(unit.layer for unit in units) - direct - fixed_layers(units)
    return live_bytes(model.graph, units, loose, direct)


def _weights_bytes(model: Model, tables: UnitTables, rank: int) -> int:
    held = [
        model.weights[name] if part is None else piece_of(part, model.weights[part.name])
        for name, part in needed_weights(model.graph, tables, rank).items()
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def check(held: Held, planned: DeviceMemory) -> None:
    """Who knows the kernels knows what is held; the plan alone tells it roughly."""
    computed, found = held.computed, held.found
    assert (computed.weights_bytes, computed.arena_bytes) == (
        found.weights_bytes,
        found.arena_bytes,
    )
    # Ranks in one process share what engines keep, and few channels leave panels empty.
    assert found.packed_bytes <= computed.packed_bytes
    # Nothing but the sums of summands, of one row each, is left out; kernels that fuse need less.
    assert found.live_bytes <= computed.live_bytes + 1024
    assert planned.weights_bytes == found.weights_bytes
    assert 1.2 * tensors(planned) + 1024 >= tensors(found)


def tensors(memory: DeviceMemory) -> int:
    return memory.arena_bytes + memory.live_bytes


@pytest.mark.parametrize("plain", [False, True], ids=["all-engines", "plain-engines"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_runtime_holds_what_was_computed(
    model: Model, ranks: int, seed: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr(prepare, "usable_engines", lambda: _plain(usable_engines()))
    plan = random_plan(model.graph, model.needs, ranks, Random(seed))
    planned = plan_memory(model.graph, model.needs, plan)
    for held, expected in zip(measured(model, plan), planned, strict=True):
        check(held, expected)
        if plain:
            assert tensors(held.computed) <= 1.3 * tensors(held.found) + 1024


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["residual", "branches"])
def test_the_runtime_holds_parts_of_weights(name: str, seed: int) -> None:
    torch.manual_seed(0)
    random = Random(seed)
    model = MODELS[name]()
    model = divided(model, random_division(model.graph, random, random.choice([0.5, 1.0])))
    plan = random_plan(model.graph, model.needs, random.choice([1, 2, 4]), random)
    planned = plan_memory(model.graph, model.needs, plan)
    for held, expected in zip(measured(model, plan), planned, strict=True):
        check(held, expected)


def test_one_device_holds_every_weight_and_little_else() -> None:
    model = residual()
    layers = {layer.name: LayerPlan.whole(layer.rows, 2, 0) for layer in model.graph.layers}
    plan = Plan("single", 2, layers, tuple(layers))
    first, second = plan_memory(model.graph, model.needs, plan)
    assert first.weights_bytes == sum(spec.size_bytes for _, spec in model.graph.weights)
    assert first.packed_bytes > 0
    maps = [layer.out.size_bytes for layer in model.graph.layers]
    assert max(maps) < first.arena_bytes < sum(maps)
    assert second.peak_bytes == 0


@pytest.mark.parametrize("name", [name for name in PARTITIONERS if name != "joint"])
def test_plans_of_partitioners_need_what_was_computed(name: str) -> None:
    plain = residual()
    graph = graph_for(name, plain.graph)
    model = replace(plain, graph=graph, needs=Needs(graph))
    profile = cluster_profile(parse_cluster(cluster(1, 1, 1, mbps=10_000, ms=0.001), "c"), graph)
    plan = schemes()[name].partition(graph, model.needs, profile, (0, 1, 2))
    planned = plan_memory(graph, model.needs, plan)
    for held, expected in zip(measured(model, plan), planned, strict=True):
        check(held, expected)


class Kernels(nn.Module):
    """Convolutions that engines keep differently, with channels that fill panels."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.strided = nn.Conv2d(64, 128, 3, 1, 1), nn.Conv2d(128, 64, 3, 2, 1)
        self.point, self.deep = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3, 1, 1, groups=64)
        self.long = nn.Conv2d(64, 64, (1, 7), padding=(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.strided(torch.relu(self.wide(x)))
        return self.long(torch.relu(self.deep(torch.relu(self.point(x)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "engine", [e for e in usable_engines() if e in ("winograd", "pointwise", "direct", "onednn")]
)
def test_engines_keep_what_they_are_expected_to(engine: str) -> None:
    model = build(Kernels(), torch.zeros(1, 64, 24, 24))
    gc.collect()
    kernels, likely, least = [], 0, kept_bytes()
    for layer in model.graph.layers:
        if layer.kind == "compute":
            made = ENGINES[engine].prepare(
                model.graph, layer, Span(0, layer.rows), model.weights, model.needs
            )
            if made is not None:
                kernels.append(made)
                likely += likely_kept_bytes(model.graph, layer, Span(0, layer.rows), engine)
    held = kept_bytes() - least
    assert kernels
    assert 0.95 * likely <= held <= likely
    del kernels, made
    gc.collect()
    assert kept_bytes() == least


def test_requests_leave_nothing_behind() -> None:
    model = residual()
    job = Job(model, random_plan(model.graph, model.needs, 3, Random(3)))
    image = torch.zeros(1, 3, 41, 36)
    job.run(image)
    tracker, after = Tracker(), []
    with tracker:
        for _ in range(50):
            job.run(image)
            after.append(tracker.now)
    assert len(set(after)) == 1  # the last answer


@pytest.mark.skipif("winograd" not in usable_engines(), reason="no kernels that LLVM makes")
@pytest.mark.parametrize("ranks", [1, 3])
def test_no_feature_map_is_allocated_for_a_request(ranks: int) -> None:
    image = torch.zeros(1, 64, 24, 24)
    model = build(nn.Sequential(Kernels(), nn.ReLU(), nn.Conv2d(64, 32, 1)), image)
    layers = {
        layer.name: LayerPlan.split(even(layer.rows, ranks))
        if layer.splits and not layer.pinned
        else LayerPlan.whole(layer.rows, ranks, 0)
        for layer in model.graph.layers
    }
    job = Job(model, Plan("even", ranks, layers, tuple(layers)))
    job.run(image)
    with Tracker() as tracker:
        job.run(image)
    (answer,) = model.graph.outputs
    request = image.numel() * image.element_size() if ranks == 1 else 0  # as channels-last
    assert tracker.peak <= answer.out.size_bytes + request + 1024
