"""What the model answered, for a person to read and for other programs to load."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from edgeflow_mpi.model.info import ModelInfo
from edgeflow_mpi.model.inputs import Request
from edgeflow_mpi.report.files import write_file

TOP = 5
SHOWN = 3
_SHOWN_VALUES = 8
_LONGEST_NAME = 60
_DIMENSIONS_OF_CLASSES = 2
_DIMENSIONS_OF_MAP = 4
_IS_DISTRIBUTION = 1e-3

RANDOM_WEIGHTS = "The model's weights are random, so the classes mean nothing."
_RANDOM_NUMBERS = "The model's weights are random, so the numbers mean nothing."

Outputs = Sequence[torch.Tensor]


def describe_answers(
    model: ModelInfo, requests: Sequence[Request], outputs: Sequence[Outputs]
) -> str:
    """The answers of a model as text; for each request, ``outputs`` has all its outputs."""
    return answer_text(
        [request.name for request in requests],
        model.output_names,
        outputs,
        categories=model.categories,
        random_weights=model.random_weights,
    )


def own_samples(request: Request, outputs: Outputs) -> Outputs:
    """The outputs without those of samples that only fill the batch."""
    if request.samples is None:
        return outputs
    batch = request.tensors[0].shape[0]
    return tuple(
        tensor[: request.samples] if tensor.dim() and tensor.shape[0] == batch else tensor
        for tensor in outputs
    )


def answer_text(
    requests: Sequence[str],
    output_names: Sequence[str],
    outputs: Sequence[Outputs],
    *,
    categories: Sequence[str] | None,
    random_weights: bool,
    shown: int = SHOWN,
) -> str:
    """Answers as text.

    Scores of classes, shape (N, K), become the most probable classes; maps, (N, C, H, W),
    the share of pixels where each class (or channel) is largest; anything else its shape
    and statistics.

    Parameters
    ----------
    requests : sequence of str
        A name for each request.
    output_names : sequence of str
        A name for each output.
    outputs : sequence of sequences of torch.Tensor
        For each request, one tensor per output.
    categories : sequence of str or None
        Names of the classes along axis 1 of outputs that have as many.
    random_weights : bool
        Whether to say that the answer means nothing.
    shown : int
        How many answers are written out; the others are counted.
    """
    blocks: list[str] = []
    answers = 0
    for request, tensors in zip(requests, outputs, strict=True):
        samples = _samples(tensors)
        for sample in range(samples):
            answers += 1
            if answers > shown:
                continue
            part = "" if samples == 1 else f", {sample + 1} of {samples} in the batch"
            lines = [f"Answer for {request}{part}:"]
            for name, tensor in zip(output_names, tensors, strict=True):
                title = name if len(output_names) > 1 else ""
                piece = tensor if samples == 1 else tensor[sample : sample + 1]
                lines += _describe(title, piece.detach(), categories)
            blocks.append("\n".join(lines))
    if answers > shown:
        blocks.append(f"… and {answers - shown} more")
    if random_weights:
        blocks.append(RANDOM_WEIGHTS if categories is not None else _RANDOM_NUMBERS)
    return "\n".join(blocks)


def save_outputs(path: Path, names: Sequence[str], outputs: Sequence[Outputs]) -> None:
    """Save the answers as a NumPy ``.npz`` file, an array for every output, by its name.

    Parameters
    ----------
    path : Path
        Where to.
    names : sequence of str
        A different name for each output.
    outputs : sequence of sequences of torch.Tensor
        For each request, one tensor per output. Several requests are concatenated along
        dimension 0, their batch; scalars are stacked. NumPy has no bfloat16, which becomes
        float32.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    arrays = {
        name: _join([tensors[index] for tensors in outputs]) for index, name in enumerate(names)
    }

    def write(file: BinaryIO) -> None:
        # Not numpy.savez: it takes names as keywords, so that an output called "file" fails.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                entry = zipfile.ZipInfo(f"{name}.npy")
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_file(path, "the output", write)


def _samples(tensors: Outputs) -> int:
    """How many samples the outputs hold: their common first dimension, else all are one."""
    sizes = {tensor.shape[0] if tensor.dim() > 1 else 1 for tensor in tensors}
    return sizes.pop() if len(sizes) == 1 and 0 not in sizes else 1


def _describe(title: str, tensor: torch.Tensor, categories: Sequence[str] | None) -> list[str]:
    """Lines on one output of one sample."""
    named = categories if categories is not None and _classes(tensor) == len(categories) else None
    numbers = tensor.is_floating_point() and bool(torch.isfinite(tensor).all())
    if numbers and tensor.dim() == _DIMENSIONS_OF_CLASSES and _is_one_answer(tensor):
        return [*([f"  {title}:"] if title else []), *_most_probable(tensor[0].double(), named)]
    lines = [_statistics(title, tensor)]
    if numbers and tensor.dim() == _DIMENSIONS_OF_MAP and _is_one_answer(tensor):
        lines += _pixel_shares(tensor[0], named)
    return lines


def _classes(tensor: torch.Tensor) -> int:
    return int(tensor.shape[1]) if tensor.dim() > 1 else 0


def _is_one_answer(tensor: torch.Tensor) -> bool:
    return tensor.shape[0] == 1 and tensor.shape[1] > 1 and tensor.numel() > 0


def _most_probable(scores: torch.Tensor, named: Sequence[str] | None) -> list[str]:
    """Numbered lines for the largest of K scores, which may be probabilities already."""
    summed = float(scores.sum())
    ready = float(scores.min()) >= 0 and abs(summed - 1) < _IS_DISTRIBUTION
    probabilities = scores if ready else torch.softmax(scores, 0)
    best = torch.topk(probabilities, min(TOP, len(probabilities)))
    labels = [_label(int(k), named, "class") for k in best.indices]
    width = max(map(len, labels))
    return [
        f"  {place}. {label:{width}}  {100 * float(share):5.1f} %"
        for place, (label, share) in enumerate(zip(labels, best.values, strict=True), start=1)
    ]


def _pixel_shares(scores: torch.Tensor, named: Sequence[str] | None) -> list[str]:
    """Lines for the classes that are largest at the most pixels of a (C, H, W) map."""
    counts = torch.bincount(scores.argmax(0).flatten(), minlength=scores.shape[0])
    order = torch.argsort(counts, descending=True, stable=True)[:TOP]
    found = [int(k) for k in order if counts[k] > 0]
    labels = [_label(k, named, "channel") for k in found]
    width = max(map(len, labels))
    pixels = int(counts.sum())
    return ["  largest at each pixel:"] + [
        f"    {label:{width}}  {100 * int(counts[k]) / pixels:5.1f} % of the pixels"
        for label, k in zip(labels, found, strict=True)
    ]


def _label(index: int, named: Sequence[str] | None, kind: str) -> str:
    if named is None:
        return f"{kind} {index}"
    name = " ".join(named[index].split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _statistics(title: str, tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    shape = "×".join(map(str, tensor.shape)) or "one number"
    start = f"  {title + ': ' if title else ''}{shape} of {kind}"
    if tensor.numel() == 0:
        return f"{start}, empty"
    if tensor.is_complex():
        return f"{start}, largest magnitude {float(tensor.abs().max()):.4g}"
    values = tensor.double().flatten()
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        return f"{start}, {bad} of {len(values)} values are NOT FINITE (NaN or infinity)"
    if len(values) <= _SHOWN_VALUES:
        return f"{start}: {', '.join(f'{float(value):.4g}' for value in values)}"
    return (
        f"{start}, from {float(values.min()):.4g} to {float(values.max()):.4g}, "
        f"mean {float(values.mean()):.4g}"
    )


def _join(tensors: Outputs) -> np.ndarray:
    whole = torch.cat(tuple(tensors)) if tensors[0].dim() else torch.stack(tuple(tensors))
    whole = whole.detach().cpu()
    return np.asarray((whole.float() if whole.dtype == torch.bfloat16 else whole).numpy())
