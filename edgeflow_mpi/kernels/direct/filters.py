"""Weights as the sums of a convolution read them: by panels of vectors of output channels."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch

from edgeflow_mpi.kernels.kept import keep
from edgeflow_mpi.kernels.large_pages import lasting
from edgeflow_mpi.kernels.llvm.machine import Machine
from edgeflow_mpi.kernels.llvm.packed import identity

Tensor = torch.Tensor


class Filters:
    """Weights of a convolution with at least one vector of output channels.

    ``values`` is [panel][row][column][input channel][vector of the panel][lane]. The last vector
    reaches back over channels of the one before where their number is no multiple of the lanes:
    it begins with ``last_vector``. The last panel may have fewer vectors than the others.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, machine: Machine) -> None:
        self.source = (weight, bias)
        channels, lanes = weight.shape[0], machine.lanes
        self.vectors = -(-channels // lanes)
        self.last_vector = channels - lanes
        firsts = [min(i * lanes, self.last_vector) for i in range(self.vectors)]
        order = torch.tensor([[first + lane for lane in range(lanes)] for first in firsts])
        self.values = lasting(self.vectors * lanes * weight[0].numel())
        start = 0
        for panel in torch.split(order.flatten(), machine.panel_vectors * lanes):
            part = weight.detach()[panel].permute(2, 3, 1, 0)
            self.values[start : start + part.numel()].view(part.shape).copy_(part)
            start += part.numel()
        self.bias = torch.zeros(channels) if bias is None else bias.detach().contiguous()
        keep(self, self.values.numel() * self.values.element_size())


_made: WeakValueDictionary[tuple[object, ...], Filters] = WeakValueDictionary()


def filters(weight: Tensor, bias: Tensor | None, machine: Machine) -> Filters:
    """The same for all kernels of a layer, as long as one of them lives.

    What was made holds on to the weights, so that their address is theirs alone.
    """
    key = (identity(weight), None if bias is None else identity(bias), machine)
    found = _made.get(key)
    if found is None:
        found = _made[key] = Filters(weight, bias, machine)
    return found
