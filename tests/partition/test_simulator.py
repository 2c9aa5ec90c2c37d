"""The compiled simulator against the readable cost model, and the search that stands on it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from partition_cases import random_graph, random_profile

from edgeflow_mpi.cluster.profile import LayerCost, Profile
from edgeflow_mpi.graph.division import divided
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec
from edgeflow_mpi.partition.baselines import equal, single
from edgeflow_mpi.partition.cost import Prediction, predict
from edgeflow_mpi.partition.flow import Flow
from edgeflow_mpi.partition.joint.planner import joint
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.pieces import pieces_of
from edgeflow_mpi.partition.plan import LayerPlan, Plan, check_plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.simulator.jit import is_kept
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.spans import Span


def assert_same_timeline(
    simulator: Simulator, graph: Graph, ranks: int, expected: Prediction
) -> None:
    """What an evaluation leaves behind: begin and end of every piece and message.

    It ends with the last answer, so what nobody waits for may be missing.
    """
    work = simulator.scratch
    begun = {work.log[k] for k in range(work.logged[0])}
    for number, layer in enumerate(graph.layers):
        for rank in range(ranks):
            for k, (rows, when) in enumerate(expected.pieces.get((layer.name, rank), ())):
                q = 3 * (number * ranks + rank) + k
                assert (work.piece_start[q], work.piece_stop[q]) == (rows.start, rows.stop)
                assert q in begun or when.start_s >= expected.makespan_s * (1 - 1e-12)
                if q in begun:
                    assert work.began_s[q] == pytest.approx(when.start_s, rel=1e-12)
                if when.finish_s < expected.makespan_s:
                    assert work.done_s[q] == pytest.approx(when.finish_s, rel=1e-12)
    sent = {
        (f.producer, f.consumer, f.source, f.dest, f.rows): t for f, t in expected.transfers.items()
    }
    for f in range(len(sent)):
        when = sent[
            graph.layers[work.producer[f]].name,
            graph.layers[work.consumer[f]].name,
            work.origin[f],
            work.dest[f],
            Span(work.row_start[f], work.row_stop[f]),
        ]
        if when.finish_s < expected.makespan_s:
            assert work.left_s[f] == pytest.approx(when.start_s, rel=1e-12)
            assert work.there_s[f] == pytest.approx(when.finish_s, rel=1e-12)


def with_steps(rng: random.Random, profile: Profile) -> Profile:
    """The profile with points that its lines do not go through."""

    def stepped(cost: LayerCost) -> LayerCost:
        rows = sorted(rng.sample(range(1, 30), 3))
        points = tuple((count, cost.seconds(count) * rng.uniform(0.7, 1.5)) for count in rows)
        return replace(cost, points=points)

    costs = tuple({key: stepped(cost) for key, cost in mine.items()} for mine in profile.costs)
    return replace(profile, costs=costs)


@pytest.mark.parametrize("seed", range(4))
def test_measured_costs_are_those_of_the_cost_model(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    needs = Needs(graph)
    profile = with_steps(rng, random_profile(rng, graph, 3))
    simulator = Simulator(graph, needs, profile, measured=True)
    lines = Simulator(graph, needs, profile)
    for _ in range(5):
        plan = random_plan(graph, needs, 3, rng)
        expected = predict(graph, needs, profile, plan, measured=True)
        assert simulator.makespan_s(plan) == pytest.approx(expected.makespan_s, rel=1e-12)
        assert simulator.makespan_s(plan) != lines.makespan_s(plan)


@pytest.mark.parametrize("seed", range(40))
def test_the_makespan_is_that_of_the_cost_model(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    needs = Needs(graph)
    ranks = rng.choice([1, 2, 3, 5, 8])
    profile = random_profile(rng, graph, ranks)
    if seed % 4 == 3:
        profile = replace(profile, network="shared")
    if seed % 3 == 2:
        profile = replace(profile, message_cpu_s=(2e-5,) * ranks)
    simulator = Simulator(graph, needs, profile)
    for _ in range(5):
        plan = random_plan(graph, needs, ranks, rng)
        expected = predict(graph, needs, profile, plan)
        assert simulator.makespan_s(plan) == pytest.approx(expected.makespan_s, rel=1e-12)
        assert_same_timeline(simulator, graph, ranks, expected)


def _problem(seed: int) -> tuple[Graph, Needs, random.Random]:
    rng = random.Random(seed)
    graph = random_graph(rng, rows=14)
    return graph, Needs(graph), rng


@pytest.mark.parametrize("seed", range(6))
def test_joint_is_never_worse_than_its_starts_and_the_same_every_time(seed: int) -> None:
    graph, needs, rng = _problem(seed)
    ranks = rng.choice([2, 3, 4])
    profile = random_profile(rng, graph, ranks)
    everyone = range(ranks)
    starts = [equal(graph, needs, profile, everyone), single(graph, needs, profile, everyone)]
    starts.append(random_plan(graph, needs, ranks, rng))
    found = [
        joint(
            graph, needs, profile, starts,
            budget=Budget(simulations=600), seed=1, progress=NoProgress(),
        ).plan
        for _ in range(2)
    ]  # fmt: skip
    made = divided(graph, needs, found[0].division)
    check_plan(made[0], found[0])
    assert found[0] == found[1]
    reached_s = predict(*made, profile, found[0]).makespan_s
    assert found[0].predicted_s == pytest.approx(reached_s, rel=1e-12)
    assert all(reached_s <= predict(graph, needs, profile, p).makespan_s for p in starts)


def test_the_same_to_the_last_bit_without_compiling() -> None:
    """Makespans of random plans, and what a search of so many simulations finds."""
    pytest.importorskip("numba", reason="numba is not installed: nothing to compare with")
    script = (
        "import random\n"
        "from dataclasses import replace\n"
        "from partition_cases import random_graph, random_profile\n"
        "from edgeflow_mpi.graph.needs import Needs\n"
        "from edgeflow_mpi.partition.joint.planner import joint\n"
        "from edgeflow_mpi.partition.joint.search import Budget\n"
        "from edgeflow_mpi.partition.random import random_plan\n"
        "from edgeflow_mpi.partition.simulator import jit\n"
        "from edgeflow_mpi.partition.simulator.simulator import Simulator\n"
        "from edgeflow_mpi.progress import NoProgress\n"
        "rng = random.Random(5)\n"
        "for case in range(4):\n"
        "    graph = random_graph(rng, rows=14, layers=9)\n"
        "    needs, profile = Needs(graph), random_profile(rng, graph, 2 + case)\n"
        "    if case == 1:\n"
        "        profile = replace(profile, network='shared')\n"
        "    if case == 2:\n"
        "        profile = replace(profile, message_cpu_s=(2e-5,) * 4)\n"
        "    simulator = Simulator(graph, needs, profile)\n"
        "    for _ in range(20):\n"
        "        plan = random_plan(graph, needs, 2 + case, rng)\n"
        "        print(simulator.makespan_s(plan).hex())\n"
        "    found = joint(\n"
        "        graph, needs, profile, budget=Budget(None, 700), progress=NoProgress()\n"
        "    )\n"
        "    plan = found.plan\n"
        "    print(plan.layers, plan.order, plan.predicted_s.hex(), sorted(plan.boundary_first))\n"
        "    print(found.simulations)\n"
        "print('compiled', jit.COMPILED)\n"
    )
    here = Path(__file__)
    printed = {}
    for plainly in ("0", "1"):
        path = os.pathsep.join([str(here.parent), str(here.parents[2])])
        environment = {**os.environ, "NUMBA_DISABLE_JIT": plainly, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
            timeout=100, check=True,
        )  # fmt: skip
        *printed[plainly], last = done.stdout.splitlines()
        assert last == f"compiled {plainly == '0'}"
    assert printed["0"] == printed["1"]
    assert len(printed["0"]) == 4 * 22


def test_what_another_installation_has_compiled_is_not_ours(tmp_path: Path) -> None:
    def kernel() -> None:
        """Stands for a function that numba has marked."""

    name = f"{__name__.rpartition('.')[2]}.kernel-7.py311.nbi"
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    assert not is_kept(kernel), "it is not compiled at all"
    kernel.stats = SimpleNamespace(cache_path=str(ours))  # type: ignore[attr-defined]
    (theirs / name).touch()
    assert not is_kept(kernel)
    (ours / name).touch()
    assert is_kept(kernel)
    kernel.stats = SimpleNamespace(cache_path=None)  # type: ignore[attr-defined]
    assert not is_kept(kernel), "nothing can be kept"


def test_channels_and_summands_are_not_computed_in_pieces() -> None:
    rows = Layer(
        "map", "compute", (), (), TensorSpec((1, 8, 6, 6), "float32", axis=2), 6, divisible=True
    )
    plan = Plan(
        "any", 2, {"map": LayerPlan.split((Span(0, 3), Span(3, 6)))}, ("map",),
        boundary_first=frozenset({("map", 0)}),
    )  # fmt: skip
    flows = [Flow("map", "next", 0, 1, Span(2, 3))]
    assert pieces_of(plan, rows, 0, flows) == (Span(2, 3), Span(0, 2))
    for whole in (replace(rows, divided="outputs"), replace(rows, combine="sum")):
        assert pieces_of(plan, whole, 0, flows) == (Span(0, 3),)
