"""The model on rank 0: captured now, or as an earlier job captured it.

Capturing imports torchvision, draws and calibrates weights, and traces the model: most of what
the start of a job takes. A kept capture is the graph, the weights that its layers name, and
what is known of inputs and answers. The undivided model, which verification compares with, is
not in it: it is loaded from its source, so that a kept capture is verified like a new one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgeflow_mpi.cache import code_version
from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.graph.json_text import graph_from_json, graph_to_json
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.model.info import ModelInfo, info_from_json, info_to_json

if TYPE_CHECKING:
    from edgeflow_mpi.model.load import LoadedModel

Tensor = torch.Tensor
_KIND = "capture"
_LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "safetensors")


@dataclass(frozen=True)
class Captured:
    """A model as a graph. ``undivided`` loads it as plain torch, unless it is there already."""

    info: ModelInfo
    graph: Graph
    weights: Mapping[str, Tensor]
    undivided: Callable[[], LoadedModel]


def load_captured(context: Context) -> Captured:
    """The model that the options name; on rank 0 only.

    Kept are torchvision models and ``.pt2`` files, under all that they depend on. What a factory
    makes depends on anything, so it is asked every time.

    Raises
    ------
    ModelError
        Where it cannot be loaded or captured.
    """
    key = _key(context)
    found = None if key is None else _from_cache(context, key)
    if found is not None:
        context.progress.say(f"  model captured by an earlier job reused ({context.options.model})")
        return found
    # Late, here and below: most jobs capture nothing.
    with context.timed("import"):
        from edgeflow_mpi.graph.capture import capture

    model = _load(context)
    with context.progress.step("layers fused into a graph"):
        graph, weights = capture(model.program, model.name, model.output_names)
    if key is not None:
        _keep(context, key, model.info, graph, weights)
    return Captured(model.info, graph, weights, lambda: model)


def _load(context: Context) -> LoadedModel:
    from edgeflow_mpi.model.load import load_model, parse_input_shape

    options = context.options
    return load_model(
        options.model,
        weights=options.weights,
        input_shapes=[parse_input_shape(text) for text in options.input_shapes] or None,
        seed=options.seed,
        progress=context.progress,
    )


def _key(context: Context) -> object | None:
    """Everything that a capture depends on; None where that cannot be known."""
    options = context.options
    file: Path | None
    if options.model.startswith("torchvision:"):
        # Calibration adds up in an order that depends on the number of threads.
        drawn = (options.seed, torch.get_num_threads()) if options.weights is None else None
        file = options.weights
    elif options.model.endswith(".pt2"):
        drawn, file = None, Path(options.model)
    else:
        return None
    content = None
    if file is not None:
        try:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError:
            return None  # whoever reads it says why
    return (
        options.model,
        str(options.weights),
        content,
        options.input_shapes,
        drawn,
        platform.python_version(),
        [(name, _version(name)) for name in _LIBRARIES],
        code_version("model", "graph"),
    )


def _from_cache(context: Context, key: object) -> Captured | None:
    found = context.cache.read_data(_KIND, key)
    place = context.cache.place(_KIND, key, ".data")
    if found is None or place is None:
        return None
    text, pieces = found
    try:
        info_text, graph_text = json.loads(text)
        info, graph = info_from_json(info_text), graph_from_json(graph_text)
        weights = {
            name: _tensor(piece, getattr(torch, spec.dtype), spec.shape)
            for (name, spec), piece in zip(graph.weights, pieces, strict=True)
        }
    except (ModelError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        context.cache.ignore(place, str(error).split("\n", 1)[0])
        return None
    context.cache.used.append("model")
    return Captured(info, graph, weights, cache(lambda: _load(context)))


def _keep(
    context: Context, key: object, info: ModelInfo, graph: Graph, weights: Mapping[str, Tensor]
) -> None:
    with suppress(TypeError, ValueError):  # of a name or argument that JSON does not take
        text = json.dumps([info_to_json(info), graph_to_json(graph)])
        context.cache.keep_data(_KIND, key, text, [_bytes(weights[n]) for n, _ in graph.weights])


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _tensor(piece: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(piece):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(piece, dtype=dtype).reshape(shape)


def _version(package: str) -> str:
    """Its version, without importing it; some are not always there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
