"""Random weights whose output really depends on the input.

With default initialisation the logits of deep convolutional networks are almost the
same for every input: batch norm divides by a variance of one that is not the
activations', layer scales of 1e-6 switch whole blocks off, some last layers start at
zero. A distributed run that loses rows would pass every comparison. After
:func:`calibrate` the statistics are those of real activations and no branch is switched
off, so that a lost row shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.model.images import Preprocessing, photo_crops

BATCH = 4
"""Samples of the calibration batch: more than one, as 1x1 maps have no variance else."""

MAX_SIDE_PX = 256
"""Longest side of the calibration images, where the model takes another size."""

_LAYER_SCALES = frozenset(("layer_scale", "gamma", "gamma_1", "gamma_2", "gamma1", "gamma2"))
_SMALL_SCALE = 0.5


def calibrate(
    module: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    preprocessing: Preprocessing | None,
    seed: int,
) -> str:
    """Make a freshly initialised module sensitive to its input, in place.

    Layer scales and zero-initialised norm weights become 1, zero-initialised matrices
    become random, and one pass over a small batch sets the statistics of batch norm.
    Models without batch norm need no more. Deterministic for a seed.

    Parameters
    ----------
    module : nn.Module
        In eval mode; it is in eval mode afterwards.
    shapes : sequence of tuple of int
        Shape of every input, batch first.
    preprocessing : Preprocessing or None
        Given where the single input is an image: the batch is then crops of photographs.
    seed : int
        Chooses the batch and the replacement matrices.

    Returns
    -------
    str
        What it was calibrated on, for the note that goes with every result.
    """
    generator = torch.Generator().manual_seed(seed)
    _switch_on(module, generator)
    batches, note = _batches(shapes, preprocessing, seed, generator)
    for inputs in batches:
        try:
            with torch.no_grad():
                _collect_statistics(module, inputs)
            return note
        except (RuntimeError, ValueError, AssertionError):
            # The smaller or larger batch does not suit the model: try its own shape.
            continue
    return "not calibrated"


def _switch_on(module: nn.Module, generator: torch.Generator) -> None:
    """Give constant-zero or tiny multipliers a value that lets the input through."""
    for owner in module.modules():
        is_norm = isinstance(owner, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm))
        for name, parameter in owner.named_parameters(recurse=False):
            if nn.parameter.is_lazy(parameter) or parameter.numel() == 0:
                continue
            low, high = (float(v) for v in parameter.detach().aminmax())
            if low != high or not parameter.is_floating_point():
                continue
            is_scale = name in _LAYER_SCALES or (is_norm and name == "weight" and low == 0.0)
            with torch.no_grad():
                if is_scale and abs(low) < _SMALL_SCALE:
                    parameter.fill_(1.0)
                elif name.endswith("weight") and parameter.dim() >= 2 and low == 0.0:
                    std = 1 / math.sqrt(parameter[0].numel())
                    parameter.normal_(0.0, std, generator=generator)


def _batches(
    shapes: Sequence[tuple[int, ...]],
    preprocessing: Preprocessing | None,
    seed: int,
    generator: torch.Generator,
) -> tuple[list[tuple[torch.Tensor, ...]], str]:
    """The batches to try in turn, and what they are."""
    if preprocessing is not None and len(shapes) == 1 and len(shapes[0]) == 4:
        channels, height, width = shapes[0][1:]
        sizes = [(min(height, MAX_SIDE_PX), min(width, MAX_SIDE_PX)), (height, width)]
        try:
            return [
                (photo_crops(BATCH, (channels, h, w), preprocessing, seed),)
                for h, w in dict.fromkeys(sizes)
            ], f"calibrated on {BATCH} photograph crops"
        except InputError:
            pass  # scikit-learn is not there; noise calibrates too
    batch = tuple(
        torch.randn((max(shape[0], BATCH), *shape[1:]), generator=generator) for shape in shapes
    )
    return [batch], f"calibrated on {batch[0].shape[0]} random tensors"


def _collect_statistics(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """One pass with batch norm in training mode, everything else as in inference."""
    norms = _norms(module)
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average: one pass gives the batch's statistics
            norm.train()
        module(*inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
