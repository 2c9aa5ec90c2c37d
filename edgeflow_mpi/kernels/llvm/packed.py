"""Weights as code reads them: by panels of output channels."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch

from edgeflow_mpi.kernels.kept import keep
from edgeflow_mpi.kernels.large_pages import lasting

Tensor = torch.Tensor

_CHANNELS_AT_A_TIME = 64


class PackedWeights:
    """Weights of a convolution, transformed and laid out by panels of output channels.

    ``values`` is [panel][product][input channel][channel of the panel], where products are
    ``transform`` (products × taps) times the taps. The last panel reaches back over channels of
    the one before where their number is no multiple of the panel: it begins with
    ``last_panel``. Where there are fewer channels than a panel has, it ends in zeros, and so
    does ``bias``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, transform: Tensor, panel: int) -> None:
        self.source = (weight, bias)
        channels = weight.shape[0]
        self.panels = -(-channels // panel)
        self.last_panel = max(0, channels - panel)
        self.values = lasting(self.panels, transform.shape[0], weight.shape[1], panel).zero_()
        taps = weight.detach().flatten(2)
        for start in range(0, weight.shape[1], _CHANNELS_AT_A_TIME):
            part = taps[:, start : start + _CHANNELS_AT_A_TIME].double().permute(2, 1, 0)
            made = (transform @ part.flatten(1)).reshape(-1, *part.shape[1:])
            # A channel in two panels is the same in both to the last bit: either may be last.
            for index in range(self.panels):
                first = min(index * panel, self.last_panel)
                piece = made[:, :, first : first + panel]
                place = self.values[index, :, start : start + part.shape[1]]
                place[:, :, : piece.shape[2]] = piece
        self.bias = torch.zeros(max(channels, panel))
        if bias is not None:
            self.bias[:channels] = bias.detach()
        keep(self, (self.values.numel() + self.bias.numel()) * self.values.element_size())


_packed: WeakValueDictionary[tuple[object, ...], PackedWeights] = WeakValueDictionary()


def packed_weights(
    weight: Tensor, bias: Tensor | None, transform: Tensor, name: str, panel: int
) -> PackedWeights:
    """The same for all kernels of a layer, as long as one of them lives.

    ``transform`` is float64, and ``name`` tells it from others. What was packed holds on to the
    weights, so that their address is theirs alone.
    """
    key = (identity(weight), None if bias is None else identity(bias), name, panel)
    found = _packed.get(key)
    if found is None:
        found = _packed[key] = PackedWeights(weight, bias, transform, panel)
    return found


def identity(tensor: Tensor) -> tuple[object, ...]:
    """What tells weights from all others, as long as they live and nobody writes to them."""
    version = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), version
