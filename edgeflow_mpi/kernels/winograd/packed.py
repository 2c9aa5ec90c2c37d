"""Transformed weights, and the sizes of blocks, of one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch

from edgeflow_mpi.kernels.winograd.code import Variant
from edgeflow_mpi.kernels.winograd.points import Matrix

Tensor = torch.Tensor

POINTS_BYTES = 512 * 1024
"""Transformed tiles of one thread's block: a part of the second-level cache."""
LARGE_BYTES = 4 * 1024 * 1024
"""Weights beyond this come from far away for every block, and want blocks of more tiles."""
LEAST_TILES, LEAST_TILES_LARGE = 24, 48
STRIP_BYTES = 256 * 1024
"""Rows of one segment, transformed along the height."""
_CHANNELS_AT_A_TIME = 64


class PackedWeights:
    """Weights of a convolution transformed and laid out by panels of output channels.

    ``values`` is [panel][product][input channel][channel of the panel]. The last panel reaches
    back over channels of the one before where their number is no multiple of the panel; where
    there are fewer than one panel's, it ends in zeros. So does ``bias``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, variant: Variant, panel: int) -> None:
        self.source = (weight, bias)
        channels = weight.shape[0]
        panels = -(-channels // panel)
        self.last_panel = max(0, channels - panel)
        kronecker = torch.kron(_tensor(variant.height.filter), _tensor(variant.width.filter))
        self.values = torch.zeros(panels, variant.products, weight.shape[1], panel)
        weight = weight.detach()
        for start in range(0, weight.shape[1], _CHANNELS_AT_A_TIME):
            part = weight[:, start : start + _CHANNELS_AT_A_TIME].double().permute(2, 3, 1, 0)
            made = kronecker @ part.reshape(kronecker.shape[1], -1)
            made = made.reshape(-1, part.shape[2], channels)
            # A channel in two panels is the same in both to the last bit: either may be last.
            for index in range(panels):
                first = min(index * panel, self.last_panel)
                piece = made[:, :, first : first + panel]
                place = self.values[index, :, start : start + part.shape[2]]
                place[:, :, : piece.shape[2]] = piece
        self.bias = torch.zeros(max(channels, panel))
        if bias is not None:
            self.bias[:channels] = bias.detach()
        self.panels = panels


_packed: WeakValueDictionary[tuple[object, ...], PackedWeights] = WeakValueDictionary()


def packed_weights(
    weight: Tensor, bias: Tensor | None, variant: Variant, panel: int
) -> PackedWeights:
    """The same for all kernels of a layer, as long as one of them lives.

    What was packed holds on to the weights, so that their address is theirs alone.
    """
    key = (_identity(weight), None if bias is None else _identity(bias), str(variant), panel)
    found = _packed.get(key)
    if found is None:
        found = _packed[key] = PackedWeights(weight, bias, variant, panel)
    return found


def _identity(tensor: Tensor) -> tuple[object, ...]:
    version = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), version


def _tensor(matrix: Matrix) -> Tensor:
    return torch.tensor([[float(c) for c in row] for row in matrix], dtype=torch.float64)


@dataclass(frozen=True)
class Blocking:
    """How a convolution's tiles are cut: into blocks, and these into items of either stage.

    Attributes
    ----------
    block : int
        Tiles of one block.
    segment : int
        Tiles of one item of the first stage.
    chunk : int
        Tiles of one item of the second stage, which is a panel of so many tiles.
    """

    block: int
    segment: int
    chunk: int


def blocking(
    variant: Variant, tiles: int, across: int, channels: int, panels: int, weights_bytes: int,
    threads: int,
) -> Blocking:  # fmt: skip
    """Blocks that stay in the caches, and items enough for all threads.

    Parameters
    ----------
    tiles, across : of the whole convolution, and of one row.
    channels, panels : input channels, and panels of output channels.
    """
    least = LEAST_TILES_LARGE if weights_bytes > LARGE_BYTES else LEAST_TILES
    block = max(least, POINTS_BYTES // (4 * variant.products * channels)) * threads
    block = _even(tiles, block)
    columns = STRIP_BYTES // (4 * variant.height.products * channels) - variant.width.taps + 1
    segment = _even(min(across, block), max(1, columns // variant.width.results))
    if threads > 1:
        segment = min(segment, _even(block, -(-block // (3 * threads))))
    chunks = 1
    while threads > 1 and panels * chunks < 3 * threads and block // (chunks + 1) >= LEAST_TILES:
        chunks += 1
    return Blocking(block, segment, -(-block // chunks))


def _even(total: int, most: int) -> int:
    """The size of as few parts as possible, none above ``most``, all about equal."""
    parts = -(-total // most)
    return -(-total // parts)
