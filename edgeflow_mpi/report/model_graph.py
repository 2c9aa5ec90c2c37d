"""The layer graph of a model as a run has it, without the weights' values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.graph.capture import capture
from edgeflow_mpi.graph.pixels import takes_pixels, with_pixels
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.graph.wire import with_wire
from edgeflow_mpi.model import torchvision_models
from edgeflow_mpi.model.exporting import decompose, export_module, output_names
from edgeflow_mpi.model.images import Preprocessing
from edgeflow_mpi.model.load import InputShape, load_model
from edgeflow_mpi.progress import Progress

TORCHVISION = "torchvision:"


def captured_graph(
    spec: str, input_shapes: Sequence[InputShape] | None, progress: Progress
) -> tuple[Graph, Preprocessing | None]:
    """The layer graph of a model, and how its image is made where it takes one.

    Parameters
    ----------
    spec : str
        As for :func:`~edgeflow_mpi.model.load.load_model`.
    input_shapes : sequence of InputShape or None
        As there.
    progress : Progress

    Raises
    ------
    ModelError
        Where the model cannot be loaded or captured.
    """
    if not spec.startswith(TORCHVISION):
        model = load_model(spec, weights=None, input_shapes=input_shapes, seed=0, progress=progress)
        return capture(model.program, spec, model.output_names)[0], model.preprocessing
    # Not load_model, which calibrates random weights: that takes longer than all the rest.
    built = torchvision_models.build(spec.removeprefix(TORCHVISION), seed=0, weight_keys=None)
    built.module.requires_grad_(False)
    shapes = input_shapes or tuple(InputShape(shape) for shape in built.shapes)
    examples = [torch.zeros(wanted.shape, dtype=wanted.dtype) for wanted in shapes]
    with progress.step(f"capture {spec}"):
        program = decompose(export_module(built.module, examples, spec), spec)
    return capture(program, spec, output_names(program, spec))[0], built.preprocessing


def model_graph(
    spec: str,
    input_shapes: Sequence[InputShape] | None,
    *,
    input_dtype: str = "auto",
    wire: str = "fp32",
    progress: Progress,
) -> Graph:
    """The graph that a run of the model would divide.

    Parameters
    ----------
    spec, input_shapes, progress
        As for :func:`captured_graph`.
    input_dtype : str
        How an image travels: ``uint8`` as pixels, ``float32`` normalised, ``auto`` as pixels
        where the model takes an image.
    wire : str
        In which type activations travel, as for :func:`~edgeflow_mpi.graph.wire.with_wire`.

    Raises
    ------
    ModelError
        Where the model cannot be loaded or captured.
    InputError
        For pixels where the input is no image.
    """
    graph, how = captured_graph(spec, input_shapes, progress)
    if input_dtype != "float32" and how is not None and takes_pixels(graph):
        graph, _ = with_pixels(graph, {}, how.mean, how.std)
    elif input_dtype == "uint8":
        raise InputError(
            f"--input-dtype uint8 is for models that take one image, which {spec} does not: "
            "leave the option out"
        )
    return with_wire(graph, wire)
