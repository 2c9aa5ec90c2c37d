"""Partitioners by name, the devices they use, and plans that hold for random cases."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import Builder, chain, profile, random_graph, random_profile

from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.graph.division import divided
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.partition.baselines import apportion, equal, proportional, single
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.graphs import graph_for
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.lp import lp
from edgeflow_mpi.partition.plan import Plan, check_plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.search import PARTITIONERS, device_sets, plan_model
from edgeflow_mpi.progress import NoProgress

seeds = st.integers(0, 10**9)


class Heard(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, text: str) -> None:
        self.lines.append(text)


def working(plan: Plan) -> set[int]:
    """Ranks that compute anything but the input and the outputs."""
    return {
        rank
        for name, layer in plan.layers.items()
        for rank, rows in enumerate(layer.computed)
        if rows and not name.startswith(("input", "output"))
    }


@given(seed=seeds, ranks=st.integers(1, 4), name=st.sampled_from(PARTITIONERS))
@settings(deadline=None, max_examples=60)
def test_plans_are_valid_repeatable_and_as_good_as_they_say(
    seed: int, ranks: int, name: str
) -> None:
    rng = random.Random(seed)
    plain = random_graph(rng, layers=5)
    costs = random_profile(rng, plain, ranks)
    graph = graph_for(name, plain)
    needs = Needs(graph)
    few = Budget(None, 100)
    plan = plan_model(graph, needs, costs, name, progress=NoProgress(), seed=3, budget=few)
    made = divided(graph, needs, plan.division)
    check_plan(made[0], plan)
    assert plan.partitioner == name and plan.ranks == ranks
    assert plan.predicted_s == predict(*made, costs, plan).makespan_s
    again = plan_model(graph, needs, costs, name, progress=NoProgress(), seed=3, budget=few)
    assert plan == again
    if name in ("joint", "lp", "proportional", "single"):
        for rank in range(ranks):
            alone = single(graph, needs, costs, [rank])
            assert plan.predicted_s <= predict(graph, needs, costs, alone).makespan_s


@pytest.mark.parametrize("partition", [equal, proportional, lp], ids=lambda f: f.__name__)
@given(seed=seeds)
@settings(deadline=None, max_examples=25)
def test_only_the_given_ranks_work(partition: type, seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, layers=4)
    costs = random_profile(rng, graph, 5)
    used = sorted(rng.sample(range(5), rng.choice([1, 2, 3])))
    plan = partition(graph, Needs(graph), costs, used)
    check_plan(graph, plan)
    assert working(plan) <= set(used)


def test_a_device_that_only_slows_things_down_gets_no_rows() -> None:
    graph = chain(layers=4, rows=32)
    costs = profile(graph, [1e6, 1e6, 1e2], bandwidth_bytes_s=1e9, latency_s=1e-5)
    for name in ("lp", "proportional"):
        plan = plan_model(graph, Needs(graph), costs, name, progress=NoProgress())
        assert working(plan) == {0, 1}
    everybody = plan_model(graph, Needs(graph), costs, "equal", progress=NoProgress())
    assert working(everybody) == {0, 1, 2}


def test_slow_links_leave_the_model_on_one_device() -> None:
    graph = chain(layers=4, rows=32)
    costs = profile(graph, [1e9] * 4, bandwidth_bytes_s=1e4, latency_s=0.1)
    plan = plan_model(graph, Needs(graph), costs, "lp", progress=NoProgress())
    assert working(plan) == {0}


def test_single_weighs_speed_against_the_way_there_and_back() -> None:
    graph = chain(layers=2, rows=16)
    needs = Needs(graph)
    near = profile(graph, [1e4, 1e6], latency_s=1e-6)
    assert working(plan_model(graph, needs, near, "single", progress=NoProgress())) == {1}
    links = {(0, 1): Link(0.0, 1e9), (1, 0): Link(100.0, 1e9)}
    far = profile(graph, [1e4, 1e6], links=links)
    assert working(plan_model(graph, needs, far, "single", progress=NoProgress())) == {0}


def test_sets_of_devices_are_the_fastest_k_and_every_single_one() -> None:
    graph = chain(layers=1)
    costs = profile(graph, [1.0, 3.0, 2.0, 3.0])
    assert device_sets(graph, costs) == [
        (0,), (1,), (2,), (3,), (1, 3), (1, 2, 3), (0, 1, 2, 3),
    ]  # fmt: skip


def test_of_many_devices_not_every_number_is_tried() -> None:
    graph = chain(layers=1)
    counts = [len(used) for used in device_sets(graph, profile(graph, [1.0] * 64))]
    assert counts == [1] * 64 + [*range(2, 17), 18, 21, 24, 28, 32, 37, 43, 50, 58, 64]
    assert len(device_sets(graph, profile(graph, [1.0]))) == 1


def test_progress_names_what_is_tried() -> None:
    graph, heard = chain(layers=1), Heard()
    plan_model(graph, Needs(graph), profile(graph, [1.0, 1.0]), "lp", progress=heard)
    assert heard.lines[-1] == "lp on 2 of 2 devices"


def test_an_unknown_partitioner_is_refused_with_the_known_ones() -> None:
    graph = chain(layers=1)
    with pytest.raises(InputError, match="no partitioner 'magic': choose one of joint, lp, exact,"):
        plan_model(graph, Needs(graph), profile(graph, [1.0]), "magic", progress=NoProgress())


def test_shares_lie_alike_in_layers_of_different_heights() -> None:
    halves = [Fraction(1)] * 4
    assert apportion(8, halves) == (0, 2, 4, 6, 8)
    assert apportion(7, halves) == (0, 2, 4, 5, 7)
    assert apportion(2, halves) == (0, 1, 1, 2, 2)
    assert apportion(7, [Fraction(1)] * 8) == (0, 1, 2, 3, 4, 4, 5, 6, 7)
    assert apportion(10, [Fraction(3), Fraction(0), Fraction(1)]) == (0, 8, 8, 10)


def test_proportional_shares_follow_measured_speed() -> None:
    graph = chain(layers=2, rows=40)
    costs = profile(graph, [1e5, 3e5], fixed_s=0.0)
    plan = proportional(graph, Needs(graph), costs, range(2))
    for layer in graph.layers[1:-1]:
        assert [span.rows for span in plan.layers[layer.name].owned] == [10, 30]


@given(seed=seeds, ranks=st.integers(1, 5))
@settings(deadline=None, max_examples=100)
def test_random_plans_are_valid(seed: int, ranks: int) -> None:
    graph = random_graph(random.Random(seed))
    needs = Needs(graph)
    plan = random_plan(graph, needs, ranks, random.Random(seed))
    check_plan(graph, plan)
    assert plan == random_plan(graph, needs, ranks, random.Random(seed))


def test_random_plans_are_of_all_kinds() -> None:
    build = Builder(rows=9)
    maps = build.conv(build.conv("input"))
    scale = build.tiny(build.pool(maps))
    graph = build.graph(build.add(maps, scale, target="aten.mul.Tensor"))
    needs = Needs(graph)
    plans = [random_plan(graph, needs, 3, random.Random(seed)) for seed in range(60)]
    layers = [(graph.by_name[name], layer) for p in plans for name, layer in p.layers.items()]
    split = [(spans.owned, spans.computed) for layer, spans in layers if layer.splits]
    assert any(not all(owned) for owned, _ in split)
    assert any(
        a and a != b for owned, computed in split for a, b in zip(owned, computed, strict=True)
    )
    assert any(
        not a and b for owned, computed in split for a, b in zip(owned, computed, strict=True)
    )
    assert any(sum(map(bool, spans.computed)) > 1 for layer, spans in layers if layer.rows == 1)
    assert any(plan.boundary_first for plan in plans)
    assert any(not plan.boundary_first for plan in plans)
    assert len({plan.order for plan in plans}) == 1  # this graph has one order


def test_orders_of_random_plans_vary() -> None:
    build = Builder(rows=9)
    left, right = build.conv("input"), build.conv("input", kernel=1)
    graph = build.graph(build.add(left, right))
    orders = {random_plan(graph, Needs(graph), 2, random.Random(s)).order for s in range(20)}
    assert len(orders) == 2


def test_plans_are_the_same_under_any_hash_seed() -> None:
    script = (
        "import random\n"
        "from partition_cases import random_graph, random_profile\n"
        "from edgeflow_mpi.graph.needs import Needs\n"
        "from edgeflow_mpi.partition.joint.search import Budget\n"
        "from edgeflow_mpi.partition.graphs import graph_for\n"
        "from edgeflow_mpi.partition.search import PARTITIONERS, plan_model\n"
        "from edgeflow_mpi.progress import NoProgress\n"
        "rng = random.Random(11)\n"
        "graph = random_graph(rng, rows=14, layers=9)\n"
        "costs = random_profile(rng, graph, 3)\n"
        "for name in PARTITIONERS:\n"
        "    case = graph_for(name, graph)\n"
        "    plan = plan_model(\n"
        "        case, Needs(case), costs, name, progress=NoProgress(), budget=Budget(None, 100)\n"
        "    )\n"
        "    print(plan.layers, plan.order, plan.predicted_s, sorted(plan.boundary_first))\n"
    )
    here = Path(__file__).parent
    printed = set()
    for seed in ("0", "1"):
        path = os.pathsep.join([str(here), str(here.parent.parent)])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
            timeout=100, check=True,
        )  # fmt: skip
        printed.add(done.stdout)
    (text,) = printed
    assert len(text.splitlines()) == len(PARTITIONERS)
