"""How much of a model's work can be divided by rows, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeflow_mpi.graph.draft import macs
from edgeflow_mpi.graph.needs import calls
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.model.load import InputShape
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.report.model_graph import TORCHVISION, captured_graph

MODELS = tuple(
    TORCHVISION + name
    for name in (
        "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "inception_v3", "googlenet",
        "vgg16", "vgg16_bn", "densenet121", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large",
        "efficientnet_b0", "mnasnet1_0", "regnet_y_400mf", "shufflenet_v2_x1_0", "convnext_tiny",
        "fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large",
    )
)  # fmt: skip
"""What the table in the documentation lists."""

_HEAD = (
    "model", "input", "layers", "layers divided", "multiply-adds", "of them divided",
    "of convolutions divided",
)  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """Multiply-adds of one request, and how many are in layers whose rows can be divided.

    Attributes
    ----------
    model : str
    input_shapes : tuple of tuple of int
    layers, layers_divided : int
        Layers that compute something, and those among them that a plan may divide.
    macs, macs_divided : int
        Of convolutions, linear layers and other products of tensors.
    conv_macs, conv_macs_divided : int
        Of convolutions alone.
    whole : tuple of (str, int)
        Every layer with multiply-adds that runs whole, and their number.
    """

    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    layers: int
    layers_divided: int
    macs: int
    macs_divided: int
    conv_macs: int
    conv_macs_divided: int
    whole: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """Divided part of all multiply-adds; 1 where there are none."""
        return self.macs_divided / self.macs if self.macs else 1.0

    @property
    def conv_share(self) -> float:
        """Divided part of the convolutions' multiply-adds; 1 where there are none."""
        return self.conv_macs_divided / self.conv_macs if self.conv_macs else 1.0


def coverage(graph: Graph) -> Coverage:
    """Count the multiply-adds of a graph's layers, divided and whole."""
    computing = [layer for layer in graph.layers if layer.kind == "compute"]
    made = {True: 0, False: 0}
    conv = {True: 0, False: 0}
    for layer in computing:
        for call in calls(graph, layer):
            count = macs(call)
            made[layer.splits] += count
            if call.step.target.split(".")[1].startswith("conv"):
                conv[layer.splits] += count
    return Coverage(
        model=graph.name,
        input_shapes=tuple(layer.out.shape for layer in graph.inputs),
        layers=len(computing),
        layers_divided=sum(layer.splits for layer in computing),
        macs=made[True] + made[False],
        macs_divided=made[True],
        conv_macs=conv[True] + conv[False],
        conv_macs_divided=conv[True],
        whole=tuple((ly.name, ly.macs) for ly in computing if ly.macs and not ly.splits),
    )


def graph_of(spec: str, input_shapes: Sequence[InputShape] | None, progress: Progress) -> Graph:
    """The layer graph of a model; see :func:`~edgeflow_mpi.report.model_graph.captured_graph`."""
    return captured_graph(spec, input_shapes, progress)[0]


def markdown_table(rows: Sequence[Coverage]) -> str:
    """A table with a line for every model; shares are rounded down, so 100 % is all."""
    body = [
        (
            row.model.removeprefix(TORCHVISION),
            " and ".join("×".join(map(str, shape)) for shape in row.input_shapes),
            str(row.layers),
            str(row.layers_divided),
            _millions(row.macs),
            _percent(row.macs_divided, row.macs),
            _percent(row.conv_macs_divided, row.conv_macs),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(_HEAD, *body, strict=True)]
    rule = ["-" * width if k < 2 else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (_HEAD, rule, *body)
    )


def page(rows: Sequence[Coverage], command: str) -> str:
    """A page of documentation around the table; ``command`` makes it again."""
    return f"""\
# How much of a model is divided

The share of a model's multiply-adds that is in layers whose rows a plan may divide among
ranks. Layers without a row rule, and those whose result has one row, run whole on one rank
that the planner chooses: classifiers at the end, and convolutions of maps of a single pixel,
as in squeeze-and-excitation blocks. Multiply-adds are those of convolutions, linear layers
and other products of tensors, for one request of the given shape. Shares are rounded down.

Made by `{command}`.

{markdown_table(rows)}
"""


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count < 1e9 else f"{count / 1e6:,.0f} M"


def _percent(part: int, whole: int) -> str:
    """With two digits, rounded down."""
    return f"{(10_000 * part // whole) / 100:.2f} %" if whole else "-"
