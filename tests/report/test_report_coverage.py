"""Shares of divided work, counted by hand and over the models that are promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeflow_mpi.graph.capture import capture
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.model.exporting import decompose, export_module, output_names
from edgeflow_mpi.model.load import InputShape
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.report.coverage import (
    MODELS,
    TORCHVISION,
    Coverage,
    coverage,
    graph_of,
    markdown_table,
    page,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"


class Gated(nn.Module):
    """A convolution, a gate from its mean, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.classes = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made = self.features(image).relu()
        gate = self.gate(made.mean((2, 3), keepdim=True)).sigmoid()
        return self.classes((made * gate).mean((2, 3)))


def graph_of_module(module: nn.Module, *shape: int) -> Graph:
    program = decompose(export_module(module.eval(), [torch.zeros(shape)], "m"), "m")
    return capture(program, "m", output_names(program, "m"))[0]


def test_multiply_adds_counted_by_hand() -> None:
    found = coverage(graph_of_module(Gated(), 1, 3, 6, 6))
    features, gate, classes = 6 * 6 * 8 * 3 * 9, 8 * 8, 8 * 10
    assert found.macs == features + gate + classes
    assert found.macs_divided == features
    assert found.conv_macs == features + gate
    assert found.conv_macs_divided == features
    assert found.conv_share == features / (features + gate)
    assert found.share == features / (features + gate + classes)
    assert sorted(count for _, count in found.whole) == [gate, classes]
    assert found.input_shapes == ((1, 3, 6, 6),)
    assert 0 < found.layers_divided < found.layers


def test_a_model_without_multiply_adds_lacks_nothing() -> None:
    found = coverage(graph_of_module(nn.ReLU(), 1, 3, 4, 4))
    assert (found.macs, found.share, found.conv_share) == (0, 1.0, 1.0)
    assert "| - |" in " ".join(markdown_table([found]).split())


def test_the_table_rounds_down_and_has_a_line_for_every_model() -> None:
    almost = Coverage("torchvision:net", ((1, 3, 4, 4),), 3, 2, 10**6, 999_999, 10, 10, ())
    lines = markdown_table([almost, almost]).split("\n")
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["net", "1×3×4×4", "3", "2", "1.0 M", "99.99 %", "100.00 %"]
    assert lines[2] in page([almost], "the command")
    assert "`the command`" in page([almost], "the command")


def convolution_share(name: str, text: str) -> float:
    (line,) = [line for line in text.split("\n") if line.startswith(f"| {name} ")]
    return float(line.strip("|").split("|")[-1].replace("%", ""))


@pytest.mark.parametrize("model", MODELS)
def test_the_documented_share_of_divided_convolutions(model: str) -> None:
    name = model.removeprefix(TORCHVISION)
    assert convolution_share(name, PAGE.read_text(encoding="utf-8")) >= 99


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "shufflenet_v2_x1_0"])
def test_the_page_is_what_the_command_makes(name: str) -> None:
    found = coverage(graph_of(TORCHVISION + name, None, NoProgress()))
    text = PAGE.read_text(encoding="utf-8")
    assert convolution_share(name, markdown_table([found])) == convolution_share(name, text)
    (documented,) = [line for line in text.split("\n") if line.startswith(f"| {name} ")]
    fresh = markdown_table([found]).split("\n")[-1]
    assert " ".join(documented.split()) == " ".join(fresh.split())


def test_a_factory_is_counted_as_well() -> None:
    spec = f"{__name__}:Gated"
    found = coverage(graph_of(spec, [InputShape((1, 3, 6, 6))], NoProgress()))
    assert found.model == spec
    assert found.conv_macs == 6 * 6 * 8 * 3 * 9 + 8 * 8
