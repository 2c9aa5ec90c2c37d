"""Parts of a job that need neither MPI nor a process of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeflow_mpi.cluster.affinity import Affinity
from edgeflow_mpi.cluster.agree import agreed
from edgeflow_mpi.cluster.profile import Device, Profile
from edgeflow_mpi.errors import ClusterError, InputError, PlanError
from edgeflow_mpi.graph.capture import capture
from edgeflow_mpi.job import options as job_options
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.options import build_parser, parse_options
from edgeflow_mpi.job.setup import Task, check_memory
from edgeflow_mpi.job.stall import culprit, explain, patience_s
from edgeflow_mpi.model.exporting import decompose, export_module
from edgeflow_mpi.partition import search
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.faults import NeedsError
from edgeflow_mpi.units.memory import tables_memory
from tests.inprocess import build
from tests.job_models import Pair


class Alone:
    """A communicator of one rank."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Ibarrier(self) -> Alone:
        return self

    def Test(self) -> bool:
        return True

    def allgather(self, value: object, /) -> list[object]:
        return [value]

    def bcast(self, value: object, /, root: int = 0) -> object:
        return value


def test_a_shared_failure_is_told_from_a_lone_one() -> None:
    assert not PlanError("no").shared
    with pytest.raises(PlanError, match="no") as caught, agreed(Alone()):
        raise PlanError("no")
    assert caught.value.shared


def test_an_unforeseen_failure_names_its_stage() -> None:
    with (
        pytest.raises(ClusterError, match=r"^making tea failed: KeyError: 'pot'$") as caught,
        agreed(Alone(), "making tea"),
    ):
        raise KeyError("pot")
    assert caught.value.shared


def test_an_expected_failure_speaks_for_itself() -> None:
    with pytest.raises(InputError, match=r"^no tea$"), agreed(Alone(), "making tea"):
        raise InputError("no tea")


def test_a_failure_keeps_the_nearest_class_that_all_ranks_know() -> None:
    from edgeflow_mpi.errors import TableError

    with pytest.raises(TableError) as caught, agreed(Alone()):
        raise NeedsError("rows")
    assert type(caught.value) is TableError


@pytest.mark.parametrize(
    ("waits", "found"),
    [
        pytest.param({0: 1}, 1, id="its-neighbour"),
        pytest.param({0: 1, 1: 2}, 2, id="behind-its-neighbour"),
        pytest.param({0: 2, 1: 2, 3: 1}, 2, id="others-wait-too"),
        pytest.param({0: 1, 1: 0}, None, id="each-other"),
        pytest.param({0: 1, 1: 2, 2: 1}, None, id="a-circle-behind"),
        pytest.param({0: None}, None, id="nobody-in-particular"),
        pytest.param({0: 1, 1: None}, None, id="a-neighbour-that-does-not-know"),
    ],
)
def test_the_end_of_a_chain_of_waiting_ranks(
    waits: dict[int, int | None], found: int | None
) -> None:
    assert culprit(waits, 0) == found
    sentence = explain(waits, 0, "it stands")
    assert sentence.startswith("it stands; ")
    assert (f"rank {found} hangs" in sentence) == (found is not None)
    assert ("message was lost" in sentence) == (found is None)


def test_listening_takes_a_share_of_the_time_to_wait() -> None:
    assert [patience_s(timeout_s) for timeout_s in (0.5, 30.0, 3600.0)] == [1.0, 5.0, 10.0]


def test_options_know_all_partitioners() -> None:
    assert job_options.PARTITIONERS == search.PARTITIONERS


def test_options_have_the_documented_defaults() -> None:
    options = parse_options([])
    assert options.model == "torchvision:resnet50"
    assert options.partitioner == "joint"
    assert (options.plan_seconds, options.plan_simulations) == (10.0, None)
    assert (options.repeat, options.warmup, options.baseline) == (10, 2, True)
    assert not options.verify
    assert options.inputs == ()


@pytest.mark.parametrize("arguments", [["--verify-layers"], ["--plant-fault", "any"]], ids=str)
def test_what_only_makes_sense_verified_is_verified(arguments: list[str]) -> None:
    assert parse_options(arguments).verify


def test_every_option_is_explained() -> None:
    unexplained = [action.option_strings for action in build_parser()._actions if not action.help]
    assert unexplained == []


def test_answers_come_in_the_models_order() -> None:
    """The second and third are ready before the first."""
    model: nn.Module = Pair().eval()
    inputs = (torch.zeros(1, 3, 9, 8), torch.zeros(1, 4, 9, 8))
    program = decompose(export_module(model, inputs, "pair"), "pair")
    names = ("scores", "maps", "largest", "same")
    graph, _ = capture(program, "pair", names)
    assert [layer.name for layer in graph.outputs] == [f"output{i}" for i in range(4)]
    assert [layer.out.shape for layer in graph.outputs] == [
        (1, 7), (1, 4, 5, 4), (1, 5, 4), (1, 4, 5, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_plan_that_does_not_fit_is_refused_with_numbers(in_flight: int) -> None:
    model = build(Pair(), torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8))
    layers = {layer.name: LayerPlan.whole(layer.rows, 1, 0) for layer in model.graph.layers}
    plan = Plan("single", 1, layers, tuple(layers))
    tables = compile_tables(model.graph, model.needs, plan)
    (need,) = tables_memory(model.graph, tables)
    task = Task(model.graph, model.needs, None, None, {}, ())
    context = Context(
        parse_options(["--in-flight", str(in_flight)]), Alone(),
        Affinity((0,), 1, (0,), 1, False, ""), NoProgress(), "", 32767, 0.0,
    )  # fmt: skip

    def profile(memory_bytes: int) -> Profile:
        device = Device("pi", 1, memory_bytes)
        return Profile("pair", model.graph.fingerprint, (device,), ({},), {})

    check_memory(context, task, tables, None)  # this machine has the memory
    enough = need.for_requests(in_flight).peak_bytes
    check_memory(context, task, tables, profile(enough))
    with pytest.raises(PlanError, match=r"^the plan needs 0 MB on rank 0 \(pi\), which has 0 MB: "):
        check_memory(context, task, tables, profile(enough - 1))
