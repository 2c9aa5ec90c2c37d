"""Layers divided by output channels and by inputs: their arithmetic, and whole jobs of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeflow_mpi.cluster.cluster_file import ClusterSpec, cluster_profile, parse_cluster
from edgeflow_mpi.cluster.profile import LayerCost
from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.channels import CHANNELS
from edgeflow_mpi.graph.division import Division, can_divide, with_division
from edgeflow_mpi.graph.local import piece_of, share_of, weight_keys
from edgeflow_mpi.graph.types import TensorSpec
from edgeflow_mpi.kernels.buffers import empty
from edgeflow_mpi.partition.baselines import equal
from edgeflow_mpi.partition.bound import lower_bound
from edgeflow_mpi.partition.cost import layer_cost, predict
from edgeflow_mpi.partition.joint import divisions
from edgeflow_mpi.partition.joint.divisions import Case
from edgeflow_mpi.partition.joint.planner import joint
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.plan import LayerPlan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.runtime.transport import Region
from edgeflow_mpi.spans import Span
from edgeflow_mpi.units.buffers import travels_as
from tests.division_cases import divided, everything, random_division
from tests.inprocess import Job, Model, build, random_job, relative_error, tolerance
from tests.random_dags import Squeeze
from tests.rule_checks import check_layers
from tests.test_executor_random_dags import made

Tensor = torch.Tensor


class Classifier(nn.Module):
    """As VGG ends: a map, flattened, through linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.wide, self.hidden = nn.Linear(6 * 7 * 5, 24), nn.Linear(24, 17)
        self.last = nn.Linear(17, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.second(x)), (7, 5))
        x = F.relu(self.wide(torch.flatten(x, 1)))
        answer: Tensor = self.last(F.hardswish(self.hidden(x)))
        return answer


class Tail(nn.Module):
    """What networks end with: bottlenecks, groups, depthwise, squeezes, branches, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.down, self.mid, self.up = (
            nn.Conv2d(12, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Conv2d(6, 12, 1),
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(12)
        self.norm.running_mean.normal_(0, 0.3)
        self.norm.running_var.uniform_(0.5, 2)
        self.grouped = nn.Conv2d(12, 20, 3, 2, 1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(20, 40, 3, padding=1, groups=20)
        self.slope = nn.PReLU(40)
        self.squeeze = Squeeze(40)
        self.branch = nn.Conv2d(40, 7, (3, 1), padding=(1, 0))
        self.head = nn.Linear(47, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.up(F.relu(self.mid(F.relu(self.down(x))))))
        x = self.grouped(F.relu(self.norm(x)))
        x = self.squeeze(self.slope(self.depthwise(x)))
        joined = torch.cat([x, F.avg_pool2d(self.branch(x), 3, 1, 1)], 1)
        pooled = F.adaptive_avg_pool2d(joined, 1).flatten(1)
        return self.head(pooled), joined.amax((2, 3), keepdim=True) * 2


class Signal(nn.Module):
    """One-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 9, 5, 2, 2), nn.Conv1d(9, 4, 3, padding="same")
        self.head = nn.Linear(4 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(torch.tanh(self.first(x)), 2)
        answer: Tensor = self.head(torch.sigmoid(self.second(x)).flatten(1))
        return answer


class Volume(nn.Module):
    """Three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 8, 3, padding=1)
        self.head = nn.Linear(8 * 60, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(F.relu(self.second(F.silu(self.first(x)))).flatten(1))
        return answer


MODELS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "classifier": lambda batch: (Classifier(), torch.randn(batch, 3, 14, 10)),
    "tail": lambda batch: (Tail(), torch.randn(batch, 3, 22, 18)),
    "signal": lambda batch: (Signal(), torch.randn(batch, 2, 24)),
    "volume": lambda batch: (Volume(), torch.randn(batch, 2, 5, 4, 3)),
}


def model_of(name: str, batch: int = 1) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    module, x = MODELS[name](batch)
    return build(module.eval(), x), x


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_span_of_channels(name: str, batch: int) -> None:
    model, x = model_of(name, batch)
    random = Random(batch)
    check_layers(divided(model, everything(model.graph)), x)
    for _ in range(4):
        check_layers(divided(model, random_division(model.graph, random)), x)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_models_in_process(name: str, batch: int) -> None:
    model, x = model_of(name, batch)
    random = Random(batch + len(name))
    other = x.flip(-1) * 0.7
    answers = [(given, *tolerance(model.module, given)) for given in (x, other)]
    for share in (0.3, 0.7, 1.0):
        variant = divided(model, random_division(model.graph, random, share))
        for ranks in (1, 2, 3, random.choice([4, 5, 6, 7]), 8):
            job = random_job(variant, ranks, random.randrange(1000))
            for given, expected, bound in answers:
                assert relative_error(job.run(given), expected) <= bound


@pytest.mark.parametrize("seed", range(300, 312))
def test_random_networks(seed: int) -> None:
    random = Random(seed)
    model, inputs = made(seed, steps=random.choice([6, 12]))
    requests = [inputs, [x * -0.7 + 0.1 for x in inputs]]
    answers = [(request, *tolerance(model.module, *request)) for request in requests]
    variant = divided(model, random_division(model.graph, random, random.choice([0.3, 1.0])))
    check_layers(variant, *inputs, seed=seed)
    for ranks in (1, 2, random.choice([3, 4, 5]), 8):
        job = random_job(variant, ranks, seed)
        for request, expected, bound in answers:
            assert relative_error(job.run(*request), expected) <= bound


def test_more_ranks_than_channels() -> None:
    """Eight ranks, four channels: some have none."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    x = torch.randn(1, 3, 6, 5)
    model = build(module, x)
    variant = divided(model, everything(model.graph))
    assert {layer.rows for layer in variant.graph.layers if layer.kind == "compute"} == {4}
    expected, bound = tolerance(module, x)
    for seed in range(5):
        job = random_job(variant, 8, seed)
        assert relative_error(job.run(x), expected) <= bound


def test_a_lost_message_is_noticed() -> None:
    """Each single one, in a network without ReLUs that could hide it."""
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1), nn.Hardswish(), nn.Conv2d(9, 9, 3, padding=1, groups=3),
        nn.Conv2d(9, 8, 1), nn.Flatten(), nn.Linear(8 * 7 * 5, 11), nn.Linear(11, 6),
    )  # fmt: skip
    x = torch.randn(1, 3, 7, 5)
    model = build(module, x)
    names = [layer.name for layer in model.graph.layers if layer.weights]
    division: Division = (
        (names[0], "outputs"), (names[1], "outputs"), (names[3], "inputs"), (names[4], "outputs"),
    )  # fmt: skip
    variant = divided(model, division)
    drawn = random_plan(variant.graph, variant.needs, 3, Random(4))
    # Nothing twice: what is computed here as well need not have arrived.
    once = {name: LayerPlan.split(spans.owned) for name, spans in drawn.layers.items()}
    plan = replace(drawn, layers=once)
    expected, bound = tolerance(module, x)
    job = Job(variant, plan)
    assert relative_error(job.run(x), expected) <= bound
    assert len(job.transfers) > 8
    for transfer in job.transfers:
        broken = Job(variant, plan, dropped=transfer)
        assert relative_error(broken.run(x), expected) > 10 * bound, transfer


def test_what_is_divided_and_what_follows() -> None:
    model, _ = model_of("tail")
    graph = model.graph
    convolutions = [layer for layer in graph.layers if "conv2d" in str(layer.steps)]
    last = convolutions[-1].name
    found = with_division(graph, ((last, "outputs"),))
    assert found.by_name[last].divided == "outputs"
    assert found.by_name[last].out.axis == CHANNELS
    assert found.by_name[last].rows == graph.by_name[last].out.shape[CHANNELS]
    for reader in found.consumers[last]:
        assert found.by_name[reader].divided == "whole"
        assert not found.by_name[reader].splits
    others = [layer for layer in graph.layers if last not in (layer.name, *layer.inputs)]
    assert all(found.by_name[layer.name] == layer for layer in others)
    assert all(found.signatures[ly.name] == graph.signatures[ly.name] for ly in others)
    assert found.signatures[last] != graph.signatures[last]
    assert found.fingerprint != graph.fingerprint
    assert with_division(graph, ()) is graph


def test_a_linear_layer_divided_by_its_inputs_needs_no_flattening() -> None:
    model, _ = model_of("classifier")
    (wide, hidden, _) = [layer for layer in model.graph.layers if "linear" in str(layer.steps)]
    assert can_divide(model.graph, wide, "inputs")
    assert not can_divide(model.graph, hidden, "inputs")
    assert can_divide(model.graph, hidden, "inputs", ((wide.name, "outputs"),))
    graph = with_division(model.graph, ((wide.name, "inputs"),))
    part = graph.by_name[wide.name + ".part"]
    pool = graph.by_name[part.inputs[0]]
    assert part.combine == "sum" and part.rows == pool.rows == 7
    assert not {layer.name for layer in graph.layers} & set(wide.inputs)
    assert part.macs == wide.macs and graph.by_name[wide.name].macs == 0


def test_ranks_need_their_part_of_the_weights() -> None:
    model, _ = model_of("classifier")
    wide = next(layer for layer in model.graph.layers if "linear" in str(layer.steps))
    for how, name in (("inputs", wide.name + ".part"), ("outputs", wide.name)):
        graph = with_division(model.graph, ((wide.name, how),))  # type: ignore[arg-type]
        layer = graph.by_name[name]
        weight = model.weights[layer.weights[0]]
        total = torch.zeros(())
        count = 0
        for rows in (Span(0, 2), Span(2, 3), Span(3, layer.rows)):
            parts = weight_keys(graph, layer, rows)
            (part, *_) = [p for p in parts.values() if p is not None]
            piece = piece_of(part, weight)
            assert piece.shape == share_of(graph, layer, rows).graph.weight_specs[part.key].shape
            assert piece.is_contiguous()
            total, count = total + piece.sum(), count + piece.numel()
        assert count == weight.numel()
        torch.testing.assert_close(total, weight.sum())


def boards(count: int) -> ClusterSpec:
    return parse_cluster(
        f"devices: [{{name: board, count: {count}, gflops: 0.01, overhead_us: 20}}]\n"
        "links: {default: {bandwidth_mbps: 1000, latency_ms: 0.01}}\n",
        "boards",
    )


def test_a_share_costs_its_share_of_the_measured_layer() -> None:
    """What a description in FLOP/s says of the divided layers themselves."""
    model, _ = model_of("classifier")
    own = cluster_profile(boards(2), model.graph)
    random = Random(0)
    for _ in range(5):
        graph = divided(model, random_division(model.graph, random)).graph
        described = cluster_profile(boards(2), graph)
        for layer in graph.layers:
            derived = layer_cost(graph, own, layer, 1)
            expected = layer_cost(graph, described, layer, 1)
            for rows in (1, layer.rows):
                assert derived.seconds(rows) == pytest.approx(expected.seconds(rows))


def test_a_share_is_computed_by_the_engine_of_the_layer() -> None:
    model, _ = model_of("classifier")
    own = cluster_profile(boards(1), model.graph)
    wide = next(layer for layer in model.graph.layers if "linear" in str(layer.steps))
    costs = {
        key: replace(cost, points=((1, 1e-3),), engines=("aten",))
        for key, cost in own.costs[0].items()
    }
    graph = with_division(model.graph, ((wide.name, "outputs"),))
    share = layer_cost(graph, replace(own, costs=(costs,)), graph.by_name[wide.name], 0)
    assert share.engine(5) == "aten"


def test_a_wide_linear_layer_is_divided_where_that_is_sooner() -> None:
    model, x = model_of("classifier")
    profile = cluster_profile(boards(4), model.graph)
    everyone = range(4)
    starts = [equal(model.graph, model.needs, profile, everyone)]
    plan = joint(
        model.graph, model.needs, profile, starts,
        budget=Budget(simulations=400), progress=NoProgress(),
    ).plan  # fmt: skip
    assert plan.division
    variant = divided(model, plan.division)
    assert plan.predicted_s == predict(variant.graph, variant.needs, profile, plan).makespan_s
    assert plan.predicted_s < predict(model.graph, model.needs, profile, starts[0]).makespan_s
    assert plan.predicted_s >= lower_bound(model.graph, model.needs, profile).makespan_s
    expected, bound = tolerance(model.module, x)
    assert relative_error(Job(variant, plan).run(x), expected) <= bound


@pytest.mark.parametrize(
    ("division", "words"),
    [
        ((("nowhere", "outputs"),), "a layer that model does not have"),
        ((("x", "outputs"),), "divides x by its output channels, which cannot"),
        ((("relu", "inputs"),), "divides relu by its inputs, but it is no linear layer"),
    ],
    ids=["unknown", "input", "no linear layer"],
)
def test_what_cannot_be_divided_is_refused(division: Division, words: str) -> None:
    model, _ = model_of("classifier")
    with pytest.raises(PlanError, match=words):
        with_division(model.graph, division)


def test_channels_travel_packed_and_rows_as_they_lie() -> None:
    """In one run each, whatever they lie in; what fills its piece is one run anyway."""
    rows = TensorSpec((1, 16, 7, 7), "float32", 2)
    channels = replace(rows, axis=1, order=rows.memory_order)
    assert travels_as(rows) is None
    assert travels_as(channels) == channels
    narrow = travels_as(replace(channels, wire="bfloat16"))
    assert narrow is not None and narrow.dtype == "bfloat16"
    region = Region.of(empty(channels, 16), channels, 4, 8)
    assert (region.blocks, region.block_bytes, region.stride_bytes) == (49, 32, 64)
    assert Region.of(empty(channels, 8), channels, 0, 8).blocks == 1


def test_what_is_derived_must_promise_more_than_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = model_of("tail")
    graph = model.graph
    profile = cluster_profile(boards(2), graph)
    wide = [name for name, how in everything(graph) if how == "outputs"]
    wide = [name for name in wide if graph.by_name[name].weights]
    case = Case(graph, model.needs).with_division(((wide[0], "outputs"),))
    share = case.graph.signatures[wide[0]]
    measured = replace(profile, costs=tuple({**c, share: LayerCost(0, 1)} for c in profile.costs))
    assert Case(graph, model.needs).promise_s(1.0, profile) == 1.0
    # A few weights take no time by themselves, so their shares are not measured.
    assert case.promise_s(1.0, measured) == case.promise_s(1.0, profile) > 1.0
    monkeypatch.setattr(divisions, "MANY_BYTES", 1)
    assert 1.0 < case.promise_s(1.0, measured) < case.promise_s(1.0, profile)
