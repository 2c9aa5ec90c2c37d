"""Let the input travel as 8-bit pixels: normalisation becomes the first layers' prologue.

A quarter of the bytes leave rank 0, and the answer is the same: every layer that reads the
image converts and normalises just the pixels it was sent, then applies its own padding, so
that padded rows are zero after normalisation, as in the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from edgeflow_mpi.graph.draft import renumber, spec_of
from edgeflow_mpi.graph.types import Arg, Graph, In, Layer, Step, Symbol, TensorSpec, Var, Weight

SCALE, SHIFT = "pixel_scale", "pixel_shift"


def takes_pixels(graph: Graph) -> bool:
    """Whether :func:`with_pixels` applies: one float image, read by ordinary layers only."""
    if len(graph.inputs) != 1:
        return False
    (image,) = graph.inputs
    readers = [graph.by_name[name] for name in graph.consumers[image.name]]
    return (
        len(image.out.shape) == 4
        and image.out.dtype == "float32"
        and bool(readers)
        and all(layer.steps and layer.combine is None for layer in readers)
    )


def with_pixels(
    graph: Graph, weights: Mapping[str, torch.Tensor], mean: Sequence[float], std: Sequence[float]
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The same model on pixels 0..255 of type uint8.

    Parameters
    ----------
    graph : one for which :func:`takes_pixels` holds.
    weights : its weights; two small ones are added.
    mean, std : per channel, in units of the 0..1 range: ``(pixel / 255 - mean) / std``.
    """
    (image,) = graph.inputs
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = (1 / (255 * deviation)).float().reshape(-1, 1, 1)
    shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).float().reshape(-1, 1, 1)
    spec = replace(image.out, dtype="uint8")
    layers = tuple(
        replace(layer, out=spec)
        if layer is image
        else _with_prologue(layer, layer.inputs.index(image.name), image.out)
        if image.name in layer.inputs
        else layer
        for layer in graph.layers
    )
    specs = (*graph.weights, (SCALE, spec_of(scale)), (SHIFT, spec_of(shift)))
    return replace(graph, layers=layers, weights=specs), {
        **weights,
        SCALE: scale,
        SHIFT: shift,
    }


def _with_prologue(layer: Layer, index: int, image: TensorSpec) -> Layer:
    """``layer`` reading the normalised image where it read input ``index``."""
    convert: tuple[tuple[str, Arg], ...] = (
        ("self", In(index)), ("dtype", Symbol("dtype", "float32")), ("layout", None),
        ("device", None), ("pin_memory", None), ("non_blocking", False), ("memory_format", None),
    )  # fmt: skip
    prologue = (
        Step("aten._to_copy.default", convert, image),
        Step("aten.mul.Tensor", (("self", Var(0)), ("other", Weight(SCALE))), image),
        Step("aten.add.Tensor", (("self", Var(1)), ("other", Weight(SHIFT)), ("alpha", 1)), image),
    )
    inputs: dict[int, Arg] = {k: In(k) for k in range(len(layer.inputs))}
    inputs[index] = Var(len(prologue) - 1)
    variables: dict[int, Arg] = {i: Var(i + len(prologue)) for i in range(len(layer.steps))}
    steps = tuple(
        replace(step, args=tuple((key, renumber(arg, inputs, variables)) for key, arg in step.args))
        for step in layer.steps
    )
    return replace(layer, steps=prologue + steps)
