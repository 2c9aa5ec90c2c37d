"""Channels-last maps that are parts of larger ones: some of their rows, some of their channels."""

from __future__ import annotations

from random import Random

import torch

Tensor = torch.Tensor

_AROUND = 7.0


def maps(
    images: int, channels: int, height: int, width: int, random: Random, *, parts: bool = False
) -> Tensor:
    """A channels-last map, perhaps some rows of a larger one; with ``parts`` some channels, too."""
    above, below = random.randrange(3), random.randrange(3)
    before, behind = (random.randrange(3), random.randrange(3)) if parts else (0, 0)
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    size = (images, above + height + below, width, before + channels + behind)
    whole = torch.randn(size, generator=generator).permute(0, 3, 1, 2)
    return whole.narrow(2, above, height).narrow(1, before, channels)


class Surrounded:
    """A map to fill that is some rows and some channels of a larger one.

    Attributes
    ----------
    part : the map to fill.
    """

    def __init__(self, images: int, channels: int, height: int, width: int, beside: int) -> None:
        size = (images, height + 2, width, channels + 2 * beside)
        self._whole = torch.full(size, _AROUND).permute(0, 3, 1, 2)
        self.part = self._whole.narrow(2, 1, height).narrow(1, beside, channels)

    def untouched(self) -> bool:
        """Whether nothing was written beside the part; overwrites the part."""
        self.part.fill_(_AROUND)
        return bool((self._whole == _AROUND).all())
