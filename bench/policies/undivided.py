"""What the undivided model answers, kept for the other cells of the model."""

from __future__ import annotations

import hashlib
import json

import torch

from edgeflow_mpi.cache import code_version
from edgeflow_mpi.job.context import Context
from edgeflow_mpi.job.setup import Task
from edgeflow_mpi.model.reference import reference_outputs

Tensor = torch.Tensor
Outputs = tuple[Tensor, ...]
_KIND = "reference"


def undivided_answers(context: Context, task: Task) -> tuple[Outputs, Outputs]:
    """The answers of plain torch to the first request, in float64 and in float32; on rank 0.

    They are kept under the weights and the input themselves, to the last bit.
    """
    key = _key(context, task)
    found = context.cache.read_data(_KIND, key)
    if found is not None:
        text, pieces = found
        kinds = json.loads(text)
        tensors = [
            torch.frombuffer(bytearray(piece), dtype=getattr(torch, dtype)).reshape(shape)
            for piece, (dtype, shape) in zip(pieces, kinds, strict=True)
        ]
        half = len(tensors) // 2
        return tuple(tensors[:half]), tuple(tensors[half:])
    assert task.undivided is not None
    with context.progress.step("the undivided model in plain torch, float64"):
        model, inputs = task.undivided(), task.plain(task.requests[0])
        wide = tuple(reference_outputs(model, inputs, torch.float64))
        plain = tuple(reference_outputs(model, inputs, torch.float32))
    tensors = [tensor.contiguous() for tensor in (*wide, *plain)]
    kinds = [(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in tensors]
    data = [t.reshape(-1).view(torch.uint8).numpy().data for t in tensors]
    context.cache.keep_data(_KIND, key, json.dumps(kinds), data)
    return wide, plain


def _key(context: Context, task: Task) -> object:
    digest = hashlib.sha256(task.graph.fingerprint.encode())
    weights = [task.weights[name] for name in sorted(task.weights)]
    for tensor in (*weights, *task.plain(task.requests[0])):
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    version = code_version("model", "graph"), str(torch.__version__)
    return context.options.model, digest.hexdigest(), version
