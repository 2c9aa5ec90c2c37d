"""Published models and other libraries' blocks: divided over ranks in this process, same answer.

``EDGEFLOW_EXHAUSTIVE=1`` runs many more plans, ranks and batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest
import torch

from edgeflow_mpi.graph.types import Layer
from edgeflow_mpi.model.images import IMAGENET, photo_crops
from edgeflow_mpi.model.load import load_model
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.spans import even
from edgeflow_mpi.units.tables import Transfer
from tests.inprocess import (
    Job,
    Model,
    build,
    from_program,
    plain,
    random_job,
    relative_error,
    tolerance,
)
from tests.rule_checks import check_layers, gathers
from tests.zoo import HAND_MADE, PUBLISHED, Published

Tensor = torch.Tensor

EXHAUSTIVE = os.environ.get("EDGEFLOW_EXHAUSTIVE") == "1"
RANKS = (1, 2, 3, 4, 5, 8) if EXHAUSTIVE else (3, 8)
SEEDS = range(4) if EXHAUSTIVE else range(1)
BATCH = 2


class Case:
    """One model with one request and its answer."""

    def __init__(self, published: Published, batch: int) -> None:
        height, width = published.size
        loaded = load_model(
            f"torchvision:{published.name}",
            weights=None,
            input_shapes=[(batch, 3, height, width)],
            seed=0,
            progress=NoProgress(),
        )
        self.model: Model = from_program(loaded.module, loaded.program, published.name)
        # Photographs, as random weights are calibrated on them: noise would be amplified.
        self.request = photo_crops(batch, (3, height, width), IMAGENET, seed=7)
        self.reference, self.bound = tolerance(loaded.module, self.request)


@pytest.fixture(
    scope="module",
    params=[(p, b) for p in PUBLISHED for b in ((1, 3) if EXHAUSTIVE else (BATCH,))],
    ids=lambda param: f"{param[0].name}-{param[1]}",
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Case(*request.param)
    torch.set_num_threads(threads)


def convolves(layer: Layer) -> bool:
    return any(step.target.startswith("aten.conv") for step in layer.steps)


def even_plan(model: Model, ranks: int) -> Plan:
    """Every layer in equal parts, what cannot be divided on rank 0."""
    layers = {
        layer.name: LayerPlan.split(even(layer.rows, ranks))
        if layer.splits
        else LayerPlan.whole(layer.rows, ranks, 0)
        for layer in model.graph.layers
    }
    return Plan("equal", ranks, layers, tuple(layers))


def test_random_plans_give_the_same_answer(case: Case) -> None:
    for ranks in RANKS:
        for seed in SEEDS:
            job = random_job(case.model, ranks, seed + ranks)
            assert relative_error(job.run(case.request), case.reference) <= case.bound


def test_all_convolutions_are_divided(case: Case) -> None:
    layers = [layer for layer in case.model.graph.layers if convolves(layer)]
    divided = [layer for layer in layers if layer.splits]
    # A convolution of a pooled map is of one row; there is nothing to divide.
    assert all(layer.out.rows == 1 for layer in layers if not layer.splits)
    assert sum(layer.macs for layer in divided) >= 0.95 * sum(layer.macs for layer in layers)


def halo_transfers(job: Job) -> list[Transfer]:
    """Messages that bring rows of a divided layer to another divided layer, in layer order."""
    graph = job.model.graph
    position = {layer.name: i for i, layer in enumerate(graph.layers)}
    found = [
        transfer
        for transfer in job.transfers
        if graph.by_name[transfer.producer].splits
        and graph.by_name[transfer.consumer].splits
        and graph.by_name[transfer.producer].combine is None
    ]
    return sorted(found, key=lambda t: (position[t.producer], t))


def test_a_dropped_halo_row_is_caught(case: Case) -> None:
    """In an early, a middle and a late layer of an even split over three ranks."""
    job = Job(case.model, even_plan(case.model, 3))
    assert relative_error(job.run(case.request), case.reference) <= case.bound
    candidates = halo_transfers(job)
    for where in (0.1, 0.5, 0.9):
        victim = candidates[int(where * len(candidates))]

        def drop(transfer: Transfer, rows: Tensor, victim: Transfer = victim) -> None:
            if transfer == victim:
                axis = case.model.graph.by_name[victim.producer].out.axis
                assert axis is not None
                rows.narrow(axis, 0, 1).zero_()

        job.network.on_delivery = drop
        error = relative_error(job.run(case.request), case.reference)
        assert error > 2 * case.bound, f"dropping {victim} changes the answer by {error:.1e} only"
    job.network.on_delivery = None
    assert relative_error(job.run(case.request), case.reference) <= case.bound


@pytest.fixture(scope="module", params=HAND_MADE)
def block(request: pytest.FixtureRequest) -> tuple[str, Model, Tensor]:
    torch.manual_seed(0)
    made = HAND_MADE[request.param]
    module, inputs = made.make().eval(), torch.randn(made.shape)
    plain(module, inputs)  # lazy layers learn their sizes
    return request.param, build(module, inputs), inputs


def test_blocks_of_other_libraries(block: tuple[str, Model, Tensor]) -> None:
    _, model, inputs = block
    check_layers(model, inputs)
    reference, bound = tolerance(model.module, inputs)
    for ranks in (2, 3, 7):
        job = random_job(model, ranks, ranks)
        assert relative_error(job.run(inputs), reference) <= bound
        assert relative_error(job.run(inputs), reference) <= bound


def test_blocks_of_other_libraries_are_divided(block: tuple[str, Model, Tensor]) -> None:
    name, model, _ = block
    for layer in model.graph.layers:
        if gathers(model, layer):
            operators = {step.target.split(".")[1] for step in layer.steps}
            allowed = operators & set(HAND_MADE[name].gathers)
            assert allowed, f"{layer.name} ({operators}) has to gather rows"


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_32", (224, 224)), ("swin_t", (65, 49))], ids=["vit", "swin"]
)
def test_transformers_run(name: str, size: tuple[int, int]) -> None:
    case = Case(Published(name, size), 1)
    job = random_job(case.model, 3, Random(3).randrange(9))
    assert relative_error(job.run(case.request), case.reference) <= case.bound
