"""Random networks: what people build of convolutions, pools, sums and concatenations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.up(pooled))


class Lambda(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


class Network(nn.Module):
    """Straight-line: step k applies a module to earlier values; some values are answers.

    ``answers`` index values; a negative one stands for the constant answer.
    """

    def __init__(
        self, steps: Sequence[tuple[nn.Module, tuple[int, ...]]], answers: Sequence[int]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([module for module, _ in steps])
        self.reads = [reads for _, reads in steps]
        self.answers = list(answers)
        self.register_buffer("constant", torch.randn(2, 3))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values = list(inputs)
        for layer, reads in zip(self.layers, self.reads, strict=True):
            values.append(layer(*(values[index] for index in reads)))
        return [values[index] if index >= 0 else self.constant * 2 for index in self.answers]


class Builder:
    """Grows a network one random step at a time, keeping every value to know its shape."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        torch.manual_seed(seed)
        batch = self.random.choice([1, 1, 2, 3])
        rows, columns = self.random.randint(5, 19), self.random.randint(3, 8)
        count = self.random.choice([1, 1, 1, 2, 3])
        self.inputs = [
            torch.randn(batch, self.random.choice([1, 2, 4]), rows, columns) for _ in range(count)
        ]
        self.values = list(self.inputs)
        self.steps: list[tuple[nn.Module, tuple[int, ...]]] = []

    def grow(self, steps: int) -> None:
        moves = [self.convolution] * 5 + [
            self.pool, self.pool, self.add, self.add, self.concatenate, self.squeeze, self.scale,
            self.upsample, self.transposed, self.normalise, self.split, self.shuffle, self.pad,
            self.global_context, self.project,
        ]  # fmt: skip
        while len(self.steps) < steps:
            self.random.choice(moves)()

    def _append(self, module: nn.Module, *reads: int) -> None:
        module.eval()
        with torch.no_grad():
            value = module(*(self.values[index] for index in reads))
        if value.numel() > 6000 or value.shape[1] > 24 or min(value.shape) == 0:
            return
        self.values.append(value)
        self.steps.append((module, reads))

    def _any(self) -> int:
        """A value, the later the likelier."""
        count = len(self.values)
        return max(self.random.randrange(count), self.random.randrange(count))

    def _alike(self, first_dim: int) -> tuple[int, int]:
        """Two values whose shapes agree from a dimension on; the same one where there are none."""
        first = self._any()
        shape = self.values[first].shape[first_dim:]
        same = [i for i, v in enumerate(self.values) if v.shape[first_dim:] == shape and i != first]
        return first, self.random.choice(same or [first])

    def convolution(self) -> None:
        source = self._any()
        channels, rows, columns = self.values[source].shape[1:]
        kernel = (min(self.random.choice([1, 3, 3, 5, 2]), rows), min(3, columns))
        groups = channels if self.random.random() < 0.2 else 1
        keep = groups > 1 or self.random.random() < 0.4
        made = channels if keep else self.random.choice([2, 4, 8])
        dilation = 2 if min(rows, columns) > 5 and self.random.random() < 0.2 else 1
        padding = tuple(k // 2 * dilation for k in kernel)
        stride = self.random.choice([1, 1, 1, 2, 3])
        parts: list[nn.Module] = [
            nn.Conv2d(
                channels,
                made,
                kernel,
                stride,
                padding,
                dilation,
                groups,
                self.random.random() < 0.5,
            )
        ]
        follow = self.random.choice(["", "relu", "norm", "norm_relu", "silu", "hardswish"])
        if follow.startswith("norm"):
            norm = nn.BatchNorm2d(made)
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            parts.append(norm)
        activations = {"relu": nn.ReLU(), "silu": nn.SiLU(), "hardswish": nn.Hardswish()}
        parts += [module for name, module in activations.items() if follow.endswith(name)]
        self._append(nn.Sequential(*parts), source)

    def pool(self) -> None:
        source = self._any()
        if min(self.values[source].shape[2:]) < 3:
            return
        ceil = self.random.random() < 0.5
        stride, padding = self.random.choice([1, 2, 3]), self.random.choice([0, 1])
        kind = self.random.choice([nn.MaxPool2d, nn.AvgPool2d])
        self._append(kind(3, stride, padding, ceil_mode=ceil), source)

    def add(self) -> None:
        function = self.random.choice(
            [lambda a, b: a + b, lambda a, b: F.relu(a + b), lambda a, b: a * b - a, torch.maximum]
        )
        self._append(Lambda(function), *self._alike(1))

    def concatenate(self) -> None:
        first, second = self._alike(2)
        self._append(Lambda(lambda a, b: torch.cat([a, b, a], 1)), first, second)

    def squeeze(self) -> None:
        source = self._any()
        self._append(Squeeze(self.values[source].shape[1]), source)

    def scale(self) -> None:
        first, second = self._any(), self._any()
        if self.values[first].shape[1] == self.values[second].shape[1]:
            function = Lambda(lambda x, y: x * y.amax((2, 3), keepdim=True).tanh())
            self._append(function, first, second)

    def upsample(self) -> None:
        source, target = self._any(), self._any()
        size = tuple(self.values[target].shape[2:])
        mode = self.random.choice(["nearest", "bilinear"])
        self._append(Lambda(lambda x: F.interpolate(x, size, mode=mode)), source)

    def transposed(self) -> None:
        source = self._any()
        channels = self.values[source].shape[1]
        self._append(nn.ConvTranspose2d(channels, 4, 3, 2, 1, output_padding=1), source)

    def normalise(self) -> None:
        source = self._any()
        if self.values[source][0, 0].numel() > 1:
            channels = self.values[source].shape[1]
            self._append(nn.GroupNorm(2 if channels % 2 == 0 else 1, channels), source)

    def split(self) -> None:
        source = self._any()
        if self.values[source].shape[1] % 2 == 0:
            part = self.random.randrange(2)
            self._append(Lambda(lambda x: x.chunk(2, 1)[part]), source)

    def shuffle(self) -> None:
        source = self._any()
        if self.values[source].shape[1] % 4 == 0:
            self._append(Lambda(lambda x: F.pixel_shuffle(x, 2)), source)

    def pad(self) -> None:
        amounts = [self.random.randint(0, 2) for _ in range(4)]
        mode = self.random.choice(["constant", "replicate"])
        self._append(Lambda(lambda x: F.pad(x, amounts, mode=mode)), self._any())

    def global_context(self) -> None:
        """Something that no rank can do for a part of the rows."""
        self._append(Lambda(lambda x: x + x.softmax(2).cumsum(2)), self._any())

    def project(self) -> None:
        self._append(Lambda(lambda x: F.layer_norm(x, x.shape[3:]) + x.mean(1, True)), self._any())


def random_network(seed: int, steps: int = 10) -> tuple[Network, list[Tensor]]:
    """A network and a request for it; the same for the same seed."""
    builder = Builder(seed)
    builder.grow(steps)
    random, count = builder.random, len(builder.values)
    answers = [count - 1] + [random.randrange(count) for _ in range(random.choice([0, 0, 1, 2]))]
    if random.random() < 0.2:
        answers.append(answers[0])  # the same tensor twice
    if random.random() < 0.2:
        answers.append(0)  # an input as an answer
    if random.random() < 0.2:
        answers.append(-1)  # a constant
    return Network(builder.steps, answers).eval(), builder.inputs
