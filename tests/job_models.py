"""Models that the job's tests load as factories, right and wrong ones."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor


class Tiny(nn.Module):
    """Two branches that are added, and a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 4, 3, padding=1, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.first(image))
        x = x + torch.relu(self.second(x))
        return self.third(x).mean((2, 3))


class Chain(nn.Module):
    """Ten convolutions without anything that would hide a fault in one of them."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *[6] * 10]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )

    def forward(self, image: Tensor) -> Tensor:
        for layer in self.layers:
            image = F.leaky_relu(layer(image), 0.5)
        return image


class Pair(nn.Module):
    """Two inputs; four outputs, which are not ready in the order of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.both = nn.Conv2d(8, 4, 5, padding=2, stride=2)
        self.scores = nn.Linear(4, 7)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        x = self.both(torch.relu(self.left(left))) + torch.relu(self.right(right))
        return {
            "scores": self.scores(x.mean((2, 3))),
            "maps": x,
            "largest": x.argmax(1),
            "same": x,
        }


class Branchy(nn.Module):
    """What it computes depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.conv(image)
        return x if x.sum() > 0 else -x


class Counter(nn.Module):
    """Counts its runs."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        self.count += 1
        return torch.as_tensor(self.conv(image) * self.count)


class Unlike(nn.Module):
    """Takes a table, not an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, table: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(table))


class Overflow(nn.Module):
    """Its answer is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.log(-1 - torch.relu(self.conv(image)))


def tiny() -> nn.Module:
    return Tiny()


def chain() -> nn.Module:
    return Chain()


def pair() -> nn.Module:
    return Pair()


def bfloat16() -> nn.Module:
    return Tiny().to(torch.bfloat16)


def branchy() -> nn.Module:
    return Branchy()


def stateful() -> nn.Module:
    return Counter()


def unlike() -> nn.Module:
    return Unlike()


def overflow() -> nn.Module:
    return Overflow()


def broken_weights() -> nn.Module:
    model = Tiny()
    with torch.no_grad():
        model.second.weight[0, 0, 0, 0] = torch.nan
    return model


def raises() -> nn.Module:
    raise OSError("the disk is full\nof things")


def number() -> int:
    return 7


answer = 42
