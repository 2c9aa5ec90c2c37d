"""Scatter and gather through rank 0: relays in the graph, plans over it, and that it runs."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import Builder, chain, profile, random_graph, random_profile
from torch import nn

from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.relays import with_relays
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.flow import trace_flows
from edgeflow_mpi.partition.gather import gather
from edgeflow_mpi.partition.plan import check_plan
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.verify import verify_tables
from tests.inprocess import Job, Model, build, relative_error, tolerance

seeds = st.integers(0, 10**9)


def test_relays_stand_behind_divided_layers_with_weights() -> None:
    build = Builder(rows=8)
    first = build.conv("input")
    second = build.conv(first)
    both = build.add(first, second)
    last = build.conv(both)
    graph = with_relays(build.graph(last))
    assert [layer.name for layer in graph.layers] == [
        "input", first, f"{first}.relay", second, f"{second}.relay", both, last, "output0",
    ]  # fmt: skip
    assert graph.by_name[both].inputs == (f"{first}.relay", f"{second}.relay")
    assert graph.by_name["output0"].inputs == (last,)


def test_relays_keep_signatures_and_outputs() -> None:
    graph = random_graph(random.Random(4), rows=14)
    relayed = with_relays(graph)
    assert relayed.output_names == graph.output_names
    for layer in graph.layers:
        assert relayed.signatures[layer.name] == graph.signatures[layer.name]


@given(seed=seeds, ranks=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_everything_travels_from_or_to_rank_0(seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, layers=5)
    relayed = with_relays(graph)
    needs = Needs(relayed)
    used = sorted(rng.sample(range(ranks), rng.randint(1, ranks)))
    plan = gather(relayed, needs, random_profile(rng, graph, ranks), used)
    check_plan(relayed, plan)
    verify_tables(relayed, needs, compile_tables(relayed, needs, plan))
    assert set(plan.active) <= {0, *used}
    for flow in trace_flows(relayed, needs, plan).flows:
        assert 0 in (flow.source, flow.dest)
        kind = relayed.by_name[flow.consumer].kind
        assert (flow.dest == 0) == (kind in ("relay", "output"))


def test_a_device_is_sent_again_what_it_has_computed() -> None:
    graph = with_relays(chain(layers=2, rows=8, kernel=1))
    costs = profile(graph, [1e5, 1e5], bandwidth_bytes_s=6400.0, latency_s=0.0, fixed_s=0.0)
    needs = Needs(graph)
    plan = gather(graph, needs, costs, range(2))
    flows = trace_flows(graph, needs, plan).flows
    # Four rows of 64 bytes out and back, twice.
    assert [flow.size_bytes(graph.by_name[flow.producer]) for flow in flows] == [256] * 4
    compute_s = 4 * costs.costs[0][graph.signatures[graph.layers[1].name]].per_row_s
    assert predict(graph, needs, costs, plan).makespan_s == pytest.approx(
        2 * compute_s + 4 * 256 / 6400
    )


def test_a_graph_without_relays_is_refused() -> None:
    graph = chain(layers=2)
    with pytest.raises(PlanError, match=r"needs relays in the graph of case: take the graph from"):
        gather(graph, Needs(graph), profile(graph, [1.0, 1.0]), range(2))


def test_nothing_to_divide_needs_no_relays() -> None:
    graph = chain(layers=1)
    plan = gather(graph, Needs(graph), profile(graph, [1.0, 1.0]), range(2))
    check_plan(graph, plan)


class Net(nn.Module):
    """Convolutions, a residual sum, a pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = torch.nn.functional.max_pool2d((x + self.second(x)).relu(), 2)
        out: torch.Tensor = self.head(self.down(x).mean((2, 3)))
        return out


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_same_answer_as_on_one_device(ranks: int) -> None:
    torch.manual_seed(0)
    module, image = Net(), torch.randn(1, 3, 21, 20)
    model = build(module, image)
    graph = with_relays(model.graph)
    needs = Needs(graph)
    relayed: Model = dataclasses.replace(model, graph=graph, needs=needs)
    plan = gather(graph, needs, profile(model.graph, [1e6, 2e6, 3e6][:ranks]), range(ranks))
    expected, allowed = tolerance(module, image)
    job = Job(relayed, plan)
    for _ in range(2):
        assert relative_error(job.run(image), expected) <= allowed
