"""Models that are taken over as an earlier job captured them, and when they are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeflow_mpi.cluster.affinity import Affinity
from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.graph.json_text import graph_from_json, graph_to_json
from edgeflow_mpi.graph.types import Graph, Layer, Step, Symbol, TensorSpec, Weight
from edgeflow_mpi.job import loading
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.loading import Captured, load_captured
from edgeflow_mpi.job.options import parse_options
from edgeflow_mpi.model.images import IMAGENET
from edgeflow_mpi.model.info import InputSpec, ModelInfo, info_from_json, info_to_json
from edgeflow_mpi.model.reference import reference_outputs
from edgeflow_mpi.progress import NoProgress
from tests.inprocess import build
from tests.job_models import tiny


class Heard(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return save(tmp_path / "tiny.pt2", seed=0)


def save(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.export.save(torch.export.export(tiny(), (torch.zeros(1, 3, 32, 32),)), path)
    return path


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were really loaded, in order."""
    asked: list[str] = []
    load = loading._load

    def counted(context: Context) -> loading.LoadedModel:
        asked.append(context.options.model)
        return load(context)

    monkeypatch.setattr(loading, "_load", counted)
    return asked


def captured(folder: Path | None, model: Path | str, *options: str) -> tuple[Captured, Context]:
    where = ["--no-cache"] if folder is None else ["--cache", str(folder)]
    affinity = Affinity((0,), 1, (0,), 1, False, "")
    chosen = parse_options(["--model", str(model), *where, *options])
    context = Context(chosen, None, affinity, Heard(), "", 32767, 0.0)
    return load_captured(context), context


def same(one: Captured, other: Captured) -> bool:
    return (one.info, one.graph) == (other.info, other.graph) and all(
        torch.equal(one.weights[name], other.weights[name]) for name, _ in one.graph.weights
    )


def test_a_second_job_captures_nothing(tmp_path: Path, program: Path, loaded: list[str]) -> None:
    first, context = captured(tmp_path / "cache", program)
    assert context.cache.used == []
    second, context = captured(tmp_path / "cache", program)
    assert context.cache.used == ["model"]
    assert same(first, second)
    assert len(loaded) == 1


def test_the_undivided_model_comes_from_its_source(
    tmp_path: Path, program: Path, loaded: list[str]
) -> None:
    first, _ = captured(tmp_path / "cache", program)
    second, _ = captured(tmp_path / "cache", program)
    x = torch.rand(1, 3, 32, 32)
    ours, theirs = (
        reference_outputs(one.undivided(), [x], torch.float64) for one in (first, second)
    )
    assert torch.equal(ours[0], theirs[0])
    second.undivided()
    assert len(loaded) == 2


def test_another_content_of_a_file_is_another_model(
    tmp_path: Path, program: Path, loaded: list[str]
) -> None:
    first, _ = captured(tmp_path / "cache", program)
    save(program, seed=1)
    second, _ = captured(tmp_path / "cache", program)
    assert not same(first, second)
    assert len(loaded) == 2


def test_nothing_is_kept_if_so_wanted(program: Path, loaded: list[str]) -> None:
    captured(None, program)
    captured(None, program)
    assert len(loaded) == 2


def test_what_a_factory_makes_is_made_every_time(tmp_path: Path, loaded: list[str]) -> None:
    for _ in range(2):
        captured(tmp_path, "tests.job_models:tiny", "--input-shape", "1,3,32,32")
    assert len(loaded) == 2
    assert list(tmp_path.iterdir()) == []


def test_random_weights_depend_on_the_seed(tmp_path: Path, loaded: list[str]) -> None:
    small = ("torchvision:squeezenet1_1", "--input-shape", "1,3,32,32")
    first, _ = captured(tmp_path, *small)
    again, _ = captured(tmp_path, *small)
    other, _ = captured(tmp_path, *small, "--seed", "1")
    assert same(first, again)
    assert again.info.categories is not None
    assert not same(first, other)
    assert len(loaded) == 2


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="cut-short"),
        pytest.param(lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], id="changed"),
        pytest.param(lambda data: data.replace(b"aten.conv2d", b"aten.conv3d"), id="other-graph"),
        pytest.param(lambda data: b"", id="empty"),
    ],
)
def test_a_damaged_capture_is_made_again(
    tmp_path: Path, program: Path, loaded: list[str], damage: Callable[[bytes], bytes]
) -> None:
    first, _ = captured(tmp_path, program)
    (entry,) = (tmp_path / "capture").iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    second, context = captured(tmp_path, program)
    assert "ignored: it is damaged" in str(context.progress.lines)  # type: ignore[attr-defined]
    assert same(first, second)
    captured(tmp_path, program)
    assert len(loaded) == 2


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model file"):
        captured(tmp_path, tmp_path / "none.pt2")


def test_what_is_known_of_a_model_reads_back() -> None:
    info = ModelInfo(
        name="m",
        inputs=(InputSpec("x", (1, 3, 4, 4), torch.bfloat16), InputSpec("y", (), torch.int64)),
        output_names=("a", "b"),
        preprocessing=IMAGENET,
        categories=("cat", "dög"),
        random_weights=True,
        weights_note="random",
        integer_limit=7,
    )
    assert info_from_json(info_to_json(info)) == info
    plain = dataclasses.replace(info, preprocessing=None, categories=None)
    assert info_from_json(info_to_json(plain)) == plain


def test_graphs_read_back() -> None:
    module: nn.Module = tiny()
    graph = build(module, torch.zeros(1, 3, 32, 32), name="tiny").graph
    assert graph_from_json(graph_to_json(graph)) == graph


def test_every_sort_of_argument_reads_back() -> None:
    spec = TensorSpec((2, 3), "float32", 0, "float16", (1, 0))
    args = (
        ("inf", float("-inf")), ("one", 1), ("true", True), ("half", 0.1), ("none", None),
        ("complex", 1 + 2j), ("text", "é"), ("weight", Weight("w")),
        ("type", Symbol("dtype", "float32")), ("nested", ((1, Weight("w")), ())),
    )  # fmt: skip
    layer = Layer(
        "l",
        "compute",
        (),
        (Step("aten.x.default", args, spec, 1),),
        spec,
        2,
        True,
        "sum",
        5,
        "inputs",
    )
    graph = Graph("g", (layer,), (("w", spec),), ("y",))
    found = graph_from_json(graph_to_json(graph))
    assert found == graph
    assert [type(arg) for _, arg in found.layers[0].steps[0].args] == [type(arg) for _, arg in args]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace("conv2d", "conv3d"), id="another-operator"),
        pytest.param(lambda text: text.replace('"in"', '"out"'), id="no-operand"),
        pytest.param(lambda text: text[:-5], id="cut"),
        pytest.param(lambda text: "[]", id="something-else"),
    ],
)
def test_what_is_no_graph_is_refused(change: Callable[[str], str]) -> None:
    text = graph_to_json(build(tiny(), torch.zeros(1, 3, 32, 32), name="tiny").graph)
    with pytest.raises(ModelError):
        graph_from_json(change(text))
