"""The layer problem's linear programs: against brute force, and what they promise."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import (
    Builder,
    chain,
    every_split,
    optimum_s,
    profile,
    random_layer_problem,
    random_problem,
)

from edgeflow_mpi.cluster.profile import Link, Profile
from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition import linear_program
from edgeflow_mpi.partition.linear_program import linear_step
from edgeflow_mpi.partition.lp import balance, best_neighbours, lp, solve_layer
from edgeflow_mpi.partition.plan import LayerPlan, check_plan
from edgeflow_mpi.partition.timeline import LayerProblem, Timeline
from edgeflow_mpi.spans import from_breakpoints

seeds = st.integers(0, 10**9)


def even(rows: int, ranks: int) -> tuple[int, ...]:
    return tuple(i * rows // ranks for i in range(ranks + 1))


def problem_of(
    graph: Graph, costs: Profile, layer: str, ranks: int, **plans: LayerPlan
) -> LayerProblem:
    """The problem of ``layer`` after the plans of the layers before it."""
    timeline = Timeline(graph, Needs(graph), costs)
    for each in graph.layers:
        if each.name == layer:
            break
        timeline.commit(each, plans.get(each.name, LayerPlan.whole(each.rows, ranks, 0)))
    return timeline.problem(graph.by_name[layer], range(ranks))


@given(seed=seeds, ranks=st.integers(2, 4), rows=st.integers(3, 9))
@settings(deadline=None, max_examples=60)
def test_never_worse_than_its_starts_nor_better_than_the_optimum(
    seed: int, ranks: int, rows: int
) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, ranks, rows=rows)
    starts = [even(problem.rows, ranks), tuple(rng.choice(every_split(problem.rows, ranks)))]
    found = solve_layer(problem, starts)
    assert found[0] == 0 and found[-1] == problem.rows and (np.diff(found) >= 0).all()
    reached_s = problem.score(found)[0]
    assert reached_s <= problem.score(np.array(starts))[:, 0].min()
    assert reached_s >= optimum_s(problem)
    floor_s, _ = balance(problem, np.arange(ranks))
    assert floor_s <= optimum_s(problem) * (1 + 1e-9)


def test_almost_always_optimal_on_small_problems() -> None:
    rng = random.Random(2022)
    gaps = []
    for _ in range(150):
        problem = random_problem(rng, rng.choice([2, 3, 4]), rows=rng.choice([5, 8, 12]))
        reached_s = problem.score(solve_layer(problem, [even(problem.rows, problem.ranks)]))[0]
        gaps.append(reached_s / optimum_s(problem) - 1.0)
    assert np.mean(np.array(gaps) <= 1e-9) >= 0.97
    assert np.mean(gaps) <= 1e-3


def test_seven_rows_over_eight_devices() -> None:
    build = Builder(rows=7)
    first = build.conv("input", kernel=1)
    second = build.conv(first, kernel=3)
    graph = build.graph()
    costs = profile(graph, [1e6] * 8, latency_s=0.0, bandwidth_bytes_s=1e12, fixed_s=0.0)
    plans = {first: LayerPlan.split(from_breakpoints((0, 1, 2, 3, 3, 4, 5, 6, 7)))}
    found = solve_layer(problem_of(graph, costs, second, 8, **plans), [(0,) * 8 + (7,)])
    assert np.diff(found).max() == 1


@pytest.mark.parametrize("before", ["whole", "replicated", "summands", "one of many"])
def test_producers_of_every_kind(before: str) -> None:
    build = Builder(rows=12)
    source = build.conv("input", kernel=1)
    plan = LayerPlan.whole(12, 3, 1)
    if before == "replicated":
        source = build.whole(source)
        plan = LayerPlan.whole(12, 3, 1, frozenset({0, 1, 2}))
    elif before == "one of many":
        plan = LayerPlan.split(from_breakpoints((0, 1, 1, 12)))
    graph_source = source
    if before == "summands":
        source = build.pool(source)
        plan = LayerPlan.split(from_breakpoints((0, 4, 8, 12)))
        layer = build.add(graph_source, source, target="aten.mul.Tensor")
    else:
        layer = build.conv(source, kernel=5)
    graph = build.graph()
    costs = profile(graph, [2e6, 1e6, 3e6], bandwidth_bytes_s=1e7)
    problem = problem_of(graph, costs, layer, 3, **{source: plan})
    found = solve_layer(problem, [even(12, 3)])
    assert problem.score(found)[0] == pytest.approx(optimum_s(problem), rel=1e-9)


def test_a_message_is_paid_for_as_soon_as_one_row_is_needed() -> None:
    graph = chain(layers=1, rows=8, kernel=1)
    layer = graph.layers[1].name
    slow = {(0, 1): Link(1.0, 1e9)}
    costs = profile(graph, [1e5, 1e5], fixed_s=0.0, links=slow)
    problem = problem_of(graph, costs, layer, 2)
    assert solve_layer(problem, [even(8, 2)]).tolist() == [0, 8, 8]


def test_a_busy_device_gets_fewer_rows() -> None:
    build = Builder(rows=16)
    busy = build.conv("input", kernel=5)
    layer = build.conv("input", kernel=1)
    graph = build.graph(busy, layer)
    costs = profile(graph, [1e6, 1e6], latency_s=0.0, bandwidth_bytes_s=1e12, fixed_s=0.0)
    plans = {busy: LayerPlan.split(from_breakpoints((0, 8, 16)))}
    assert solve_layer(problem_of(graph, costs, layer, 2, **plans), []).tolist() == [0, 8, 16]
    plans = {busy: LayerPlan.whole(16, 2, 1)}
    assert solve_layer(problem_of(graph, costs, layer, 2, **plans), []).tolist() == [0, 16, 16]


@given(seed=seeds, ranks=st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_with_senders_kept_out_the_program_is_true_where_needs_are_linear(
    seed: int, ranks: int
) -> None:
    rng = random.Random(seed)
    build = Builder(rows=24)
    first = build.conv("input", kernel=1)
    second = build.conv(first, kernel=1)
    graph = build.graph()
    links = {
        (i, j): Link(rng.choice([0.0, 1e-5]), 10 ** rng.uniform(5, 7))
        for i in range(ranks)
        for j in range(ranks)
        if i != j
    }
    costs = profile(graph, [10 ** rng.uniform(5, 7) for _ in range(ranks)], links=links)
    cuts = sorted(rng.randint(0, 24) for _ in range(ranks - 1))
    plans = {first: LayerPlan.split(from_breakpoints((0, *cuts, 24)))}
    problem = problem_of(graph, costs, second, ranks, **plans)
    x = np.array([0.0, *sorted(rng.uniform(0, 24) for _ in range(ranks - 1)), 24.0])
    now_s = problem.score(x)[0]
    step = linear_step(problem, x, 24.0, keep_out=True)
    if step is None:
        assert np.count_nonzero(np.diff(x) > 1e-6) < 2
        return
    reached_s = problem.score(step.breakpoints)[0]
    assert reached_s <= step.promised_s * (1 + 1e-6)
    # No step goes uphill, but for the weight of the tie-break.
    assert reached_s <= now_s * (1 + 1e-3)


@pytest.mark.parametrize("status", [1, 2])
def test_a_solver_without_an_answer_leaves_the_best_rounding(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(random.Random(5), 3, rows=9)
    answer = SimpleNamespace(status=status, message="no", x=None)
    monkeypatch.setattr(linear_program, "milp", lambda *_, **__: answer)
    found = solve_layer(problem, [even(problem.rows, 3)])
    assert problem.score(found)[0] <= problem.score(np.array(even(problem.rows, 3)))[0]


@pytest.mark.parametrize("status", [3, 4])
def test_a_failing_solver_is_an_error_of_the_plan(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(random.Random(5), 3, rows=9)
    answer = SimpleNamespace(status=status, message="numerical trouble", x=None)
    monkeypatch.setattr(linear_program, "milp", lambda *_, **__: answer)
    x = np.array([0.0, 1.0, 2.0, float(problem.rows)])
    with pytest.raises(PlanError, match="numerical trouble"):
        linear_step(problem, x, 3.0, keep_out=False)


def test_equal_devices_on_fast_links_get_nearly_even_rows() -> None:
    graph = chain(layers=5, rows=32)
    costs = profile(graph, [1e6] * 4, bandwidth_bytes_s=1e10, latency_s=1e-6)
    plan = lp(graph, Needs(graph), costs, range(4))
    check_plan(graph, plan)
    for layer in graph.layers[1:-1]:
        rows = [span.rows for span in plan.layers[layer.name].owned]
        assert max(rows) - min(rows) <= 2


def test_rows_follow_speed() -> None:
    graph = chain(layers=3, rows=64, kernel=1)
    costs = profile(graph, [3e5, 1e5], bandwidth_bytes_s=1e10, latency_s=0.0, fixed_s=0.0)
    plan = lp(graph, Needs(graph), costs, range(2))
    for layer in graph.layers[1:-1]:
        assert plan.layers[layer.name].owned[0].rows == pytest.approx(48, abs=1)


def test_costs_of_nothing_are_no_trouble() -> None:
    graph = chain(layers=3, rows=8)
    costs = profile(graph, [1e30] * 3, bandwidth_bytes_s=1e30, latency_s=0.0, fixed_s=0.0)
    check_plan(graph, lp(graph, Needs(graph), costs, range(3)))


def every_neighbour(x: np.ndarray) -> list[tuple[int, ...]]:
    """Runs of breakpoints moved by powers of two, and points where one device has none."""
    k, rows = len(x) - 1, int(x[-1])
    found = []
    for power in range(max(rows.bit_length() - 2, 1)):
        for by in (1 << power, -(1 << power)):
            for first in range(1, k):
                for last in range(first, k):
                    moved = x.copy()
                    moved[first : last + 1] += by
                    found.append(moved)
    for i in range(1, k):
        for value in (x[i + 1], x[i - 1]):
            moved = x.copy()
            moved[i] = value
            found.append(moved)
    return [tuple(int(v) for v in moved) for moved in found if (np.diff(moved) >= 0).all()]


def test_the_best_neighbour_is_among_those_that_are_looked_at() -> None:
    rng = np.random.default_rng(8)
    for _ in range(300):
        problem = random_layer_problem(rng, ranks=rng.integers(2, 7), rows=rng.integers(2, 30))
        cuts = np.sort(rng.integers(0, problem.rows + 1, problem.ranks - 1))
        x = np.array([0, *cuts, problem.rows])
        every, few = every_neighbour(x), best_neighbours(problem, x)
        assert {tuple(int(v) for v in moved) for moved in few} <= set(every)
        best = min(tuple(problem.score(np.array(moved))) for moved in every)
        assert min(tuple(problem.score(moved)) for moved in few) == best


def test_one_device_has_no_neighbours() -> None:
    problem = random_layer_problem(np.random.default_rng(1), ranks=1, rows=9)
    assert len(best_neighbours(problem, np.array([0, 9]))) == 0
    assert solve_layer(problem, [(0, 9)]).tolist() == [0, 9]
