"""Plans that are taken over from an earlier job, and when they are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edgeflow_mpi.cluster.affinity import Affinity
from edgeflow_mpi.cluster.profile import Device, Link, Profile
from edgeflow_mpi.errors import EdgeflowError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.graph.wire import with_wire
from edgeflow_mpi.job import planning
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.options import parse_options
from edgeflow_mpi.job.planning import plan_for
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.units.tables import UnitTables
from tests.inprocess import build
from tests.job_models import tiny

QUICK = ("--plan-simulations", "20")


class Two:
    """As much of a communicator of two ranks as planning looks at."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 2


class Heard(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(tiny(), torch.zeros(1, 3, 32, 32), name="tiny").graph


@pytest.fixture(autouse=True)
def plans_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The partitioners that were really asked, in order."""
    asked: list[str] = []
    made = planning._made

    def counted(
        context: Context, graph: Graph, needs: Needs, profile: Profile, partitioner: str
    ) -> UnitTables:
        asked.append(partitioner)
        return made(context, graph, needs, profile, partitioner)

    monkeypatch.setattr(planning, "_made", counted)
    return asked


def profile_of(graph: Graph, second_s: float = 1e-4) -> Profile:
    from edgeflow_mpi.cluster.profile import LayerCost

    signatures = {graph.signatures[layer.name] for layer in graph.layers if layer.kind == "compute"}
    costs = tuple(
        {key: LayerCost(0.0, each_s) for key in signatures} for each_s in (1e-4, second_s)
    )
    devices = tuple(Device(f"d{i}", 1, 10**9) for i in range(2))
    link = Link(1e-4, 1e8)
    return Profile(graph.name, graph.fingerprint, devices, costs, {(0, 1): link, (1, 0): link})


def context_of(folder: Path | None, *options: str) -> Context:
    where = ["--no-cache"] if folder is None else ["--cache", str(folder)]
    affinity = Affinity((0,), 1, (0,), 1, False, "")
    return Context(
        parse_options([*QUICK, *where, *options]), Two(), affinity, Heard(), "", 32767, 0.0
    )


def planned(
    graph: Graph,
    folder: Path | None,
    options: Sequence[str] = (),
    *,
    partitioner: str = "joint",
    profile: Profile | None = None,
) -> tuple[UnitTables, Context]:
    context = context_of(folder, *options)
    tables = plan_for(context, graph, Needs(graph), profile or profile_of(graph), partitioner)
    return tables, context


def test_a_second_job_plans_nothing(graph: Graph, tmp_path: Path, plans_made: list[str]) -> None:
    first, context = planned(graph, tmp_path)
    assert context.cache.used == []
    second, context = planned(graph, tmp_path)
    assert second == first
    assert plans_made == ["joint"]
    assert context.cache.used == ["plan"]
    assert "--remeasure plans again" in str(context.progress.lines)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        {"options": ("--remeasure",)},
        {"options": ("--seed", "1")},
        {"options": ("--plan-simulations", "30")},
        {"partitioner": "equal"},
    ],
    ids=str,
)
def test_another_question_has_another_plan(
    graph: Graph, tmp_path: Path, plans_made: list[str], change: dict[str, object]
) -> None:
    planned(graph, tmp_path)
    planned(graph, tmp_path, **change)  # type: ignore[arg-type]
    assert len(plans_made) == 2


def test_other_devices_or_layers_have_another_plan(
    graph: Graph, tmp_path: Path, plans_made: list[str]
) -> None:
    planned(graph, tmp_path)
    planned(graph, tmp_path, profile=profile_of(graph, 2e-4))
    narrow = with_wire(graph, "fp16")
    planned(narrow, tmp_path, profile=profile_of(narrow))
    assert len(plans_made) == 3


def test_how_long_to_search_is_no_matter_to_those_that_do_not(
    graph: Graph, tmp_path: Path, plans_made: list[str]
) -> None:
    planned(graph, tmp_path, partitioner="equal")
    planned(graph, tmp_path, ("--plan-simulations", "30", "--seed", "4"), partitioner="equal")
    assert plans_made == ["equal"]


def test_nothing_is_kept_if_so_wanted(graph: Graph, plans_made: list[str]) -> None:
    planned(graph, None)
    planned(graph, None)
    assert len(plans_made) == 2


def test_a_damaged_plan_is_made_again(graph: Graph, tmp_path: Path, plans_made: list[str]) -> None:
    planned(graph, tmp_path)
    (entry,) = (tmp_path / "plan").iterdir()
    entry.write_text(entry.read_text().replace("rows 0:", "rows 1:", 1))
    _, context = planned(graph, tmp_path)
    assert "ignored: it is damaged" in str(context.progress.lines)  # type: ignore[attr-defined]
    assert len(plans_made) == 2
    planned(graph, tmp_path)
    assert len(plans_made) == 2


def test_a_kept_plan_is_verified_like_any_other(
    graph: Graph, tmp_path: Path, plans_made: list[str]
) -> None:
    """A sound entry whose tables do not fit the graph: somebody made the same seal."""
    planned(graph, tmp_path)
    (entry,) = (tmp_path / "plan").iterdir()
    key = planning._key(context_of(tmp_path), graph, profile_of(graph), "joint")
    text = entry.read_text().partition("\n")[2].replace("owned 0:", "owned 1:", 1)
    context_of(tmp_path).cache.keep_text("plan", key, ".txt", text)
    _, context = planned(graph, tmp_path)
    heard = [line for line in context.progress.lines if "ignored" in line]  # type: ignore[attr-defined]
    assert len(heard) == 1
    assert len(plans_made) == 2


def test_contradicting_options_are_refused() -> None:
    with pytest.raises(EdgeflowError, match="contradict"):
        parse_options(["--cache", "x", "--no-cache"])
