"""The exact solution of the layer problem against all splits, and as a partitioner."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import (
    Builder,
    chain,
    every_split,
    profile,
    random_layer_problem,
    random_problem,
    resnet50,
)

from edgeflow_mpi.cluster.profile import Link
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.partition.exact import exact, solve_exactly
from edgeflow_mpi.partition.lp import solve_layer
from edgeflow_mpi.partition.plan import check_plan
from edgeflow_mpi.partition.timeline import LayerProblem, Timeline

seeds = st.integers(0, 10**9)


def check_optimal(problem: LayerProblem) -> None:
    """The solution has the least maximum of all splits, and of those the least sum."""
    found = solve_exactly(problem)
    assert found[0] == 0 and found[-1] == problem.rows and (np.diff(found) >= 0).all()
    scores = problem.score(every_split(problem.rows, problem.ranks))
    latest_s, sum_s = problem.score(found)
    assert latest_s == scores[:, 0].min()
    best_sum_s = scores[scores[:, 0] == latest_s, 1].min()
    assert sum_s == pytest.approx(best_sum_s, rel=1e-12)


@given(seed=seeds, ranks=st.integers(1, 4), rows=st.integers(3, 10))
@settings(deadline=None, max_examples=150)
def test_optimal_for_layers_of_random_graphs(seed: int, ranks: int, rows: int) -> None:
    check_optimal(random_problem(random.Random(seed), ranks, rows=rows))


def test_optimal_for_thousands_of_made_up_layers() -> None:
    rng = np.random.default_rng(2022)
    for _ in range(3000):
        check_optimal(random_layer_problem(rng, ranks=rng.integers(1, 5), rows=rng.integers(2, 11)))


def test_equal_sums_go_to_the_least_last_breakpoints() -> None:
    graph = chain(layers=1, rows=4, kernel=1)
    costs = profile(graph, [1e6] * 3, latency_s=0.0, bandwidth_bytes_s=1e30, fixed_s=0.0)
    timeline = Timeline(graph, Needs(graph), costs)
    timeline.commit(graph.layers[0], exact(graph, Needs(graph), costs, [0]).layers["input"])
    problem = timeline.problem(graph.layers[1], range(3))
    # Two rows on one device take as long as two on any other; 1 + 2 + 1 is as good as any.
    assert solve_exactly(problem).tolist() == [0, 0, 2, 4]


def test_a_message_that_costs_more_than_it_saves_is_avoided() -> None:
    graph = chain(layers=1, rows=8, kernel=1)
    links = {(0, 1): Link(1.0, 1e9)}
    costs = profile(graph, [1e5, 1e5], fixed_s=0.0, links=links)
    plan = exact(graph, Needs(graph), costs, range(2))
    assert [span.rows for span in plan.layers[graph.layers[1].name].owned] == [8, 0]


def test_never_worse_than_the_linear_programs_on_tall_layers() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        problem = random_layer_problem(rng, ranks=int(rng.integers(2, 9)), rows=112)
        even = tuple(i * 112 // problem.ranks for i in range(problem.ranks + 1))
        best_s = problem.score(solve_exactly(problem))[0]
        assert best_s <= problem.score(solve_layer(problem, [even]))[0]


def test_a_plan_of_a_real_network() -> None:
    graph = resnet50()
    needs = Needs(graph)
    costs = profile(graph, [2.5e9] * 8, bandwidth_bytes_s=1.17e7, latency_s=2e-4, fixed_s=5e-5)
    plan = exact(graph, needs, costs, range(8))
    check_plan(graph, plan)
    assert plan.active == tuple(range(8))
    assert plan == exact(graph, needs, costs, range(8))


def test_layers_with_one_input_of_summands() -> None:
    build = Builder(rows=12)
    maps = build.conv("input")
    graph = build.graph(build.add(maps, build.pool(maps), target="aten.mul.Tensor"))
    costs = profile(graph, [2e6, 1e6, 3e6], bandwidth_bytes_s=1e7)
    check_plan(graph, exact(graph, Needs(graph), costs, range(3)))


def test_the_same_without_numba() -> None:
    pytest.importorskip("numba", reason="numba is not installed: nothing to compare with")
    script = (
        "import sys; sys.modules['numba'] = {numba}\n"
        "import numpy as np\n"
        "from partition_cases import random_layer_problem\n"
        "from edgeflow_mpi.partition.exact import solve_exactly\n"
        "rng = np.random.default_rng(3)\n"
        "for _ in range(60):\n"
        "    problem = random_layer_problem(rng, ranks=int(rng.integers(1, 6)), rows=28)\n"
        "    print(solve_exactly(problem).tolist())\n"
    )
    printed = set()
    for numba in ("None", "__import__('numba')"):
        done = subprocess.run(
            [sys.executable, "-c", script.replace("{numba}", numba)],
            env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"},
            capture_output=True, text=True, timeout=100, check=True,
        )  # fmt: skip
        printed.add(done.stdout)
    assert len(printed) == 1
    assert len(printed.pop().splitlines()) == 60
