"""Models to divide: those of torchvision that must work, and blocks as others write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor


@dataclass(frozen=True)
class Published:
    """A torchvision model and the smallest odd input that suits it."""

    name: str
    size: tuple[int, int]


PUBLISHED = (
    Published("resnet18", (97, 75)), Published("resnet50", (97, 75)),
    Published("wide_resnet50_2", (65, 49)), Published("resnext50_32x4d", (65, 49)),
    Published("inception_v3", (107, 91)), Published("googlenet", (97, 75)),
    Published("vgg16", (65, 49)), Published("vgg16_bn", (65, 49)),
    Published("densenet121", (65, 49)), Published("squeezenet1_1", (97, 75)),
    Published("mobilenet_v2", (97, 75)), Published("mobilenet_v3_large", (97, 75)),
    Published("efficientnet_b0", (97, 75)), Published("mnasnet1_0", (97, 75)),
    Published("regnet_y_400mf", (97, 75)), Published("shufflenet_v2_x1_0", (97, 75)),
    Published("convnext_tiny", (97, 75)), Published("fcn_resnet50", (65, 49)),
    Published("deeplabv3_resnet50", (65, 49)), Published("lraspp_mobilenet_v3_large", (97, 75)),
)  # fmt: skip
"""Every model that must be divided to the same answer."""


def block(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, **options: int) -> nn.Sequential:
    """Convolution, batch norm with statistics that matter, activation."""
    norm = nn.BatchNorm2d(c_out)
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.normal_(0, 0.2)
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False, **options)
    return nn.Sequential(convolution, norm, nn.SiLU())


class UNet(nn.Module):
    """Two levels, skips concatenated; up by a transposed convolution or by interpolation."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = block(3, 8), block(8, 12), block(12, 16)
        self.up2 = nn.ConvTranspose2d(16, 12, 2, 2) if transposed else block(16, 12, 1)
        self.up1 = nn.ConvTranspose2d(12, 8, 2, 2) if transposed else block(12, 8, 1)
        self.join2, self.join1, self.head = block(24, 12), block(16, 8), nn.Conv2d(8, 2, 1)
        self.transposed = transposed

    def _up(self, layer: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        x = layer(x)
        if not self.transposed:
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        down, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return torch.cat([skip, x], 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.middle(F.max_pool2d(two, 2))
        x = self.join2(self._up(self.up2, x, two))
        return self.head(self.join1(self._up(self.up1, x, one)))


class ResponseNorm(nn.Module):
    """Global response normalisation, channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        strength = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        relative = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * relative) + self.beta + x


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide, self.narrow = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )
        self.response = ResponseNorm(4 * channels)
        self.scale = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.narrow(self.response(F.gelu(self.wide(self.norm(y)))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class AttentionModule(nn.Module):
    """Channel attention from two pools, then spatial attention (CBAM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, channels, 1, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        average, largest = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        x = x * torch.sigmoid(self.mlp(average) + self.mlp(largest))
        where = torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.spatial(where))


class CoordinateAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(channels, 8, 1)
        self.down, self.across = nn.Conv2d(8, channels, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[2]
        down = F.adaptive_avg_pool2d(x, (None, 1))
        across = F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
        both = F.hardswish(self.shared(torch.cat([down, across], 2)))
        down, across = both[:, :, :rows], both[:, :, rows:].permute(0, 1, 3, 2)
        return x * torch.sigmoid(self.down(down)) * torch.sigmoid(self.across(across))


class Ghost(nn.Module):
    """A ghost bottleneck with squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main, self.cheap = block(channels, 8, 1), block(8, 8, 3, groups=8)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.back, self.back_cheap = (
            block(16, channels // 2, 1),
            block(channels // 2, channels // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        y = torch.cat([y, self.cheap(y)], 1)
        s = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = self.back(y * F.hardsigmoid(s))
        return torch.cat([y, self.back_cheap(y)], 1) + x


class SplitBlock(nn.Module):
    """The C2f block: halves, a chain of bottlenecks, everything concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = block(channels, channels, 1), block(2 * channels, channels, 1)
        half = channels // 2
        self.inner = nn.ModuleList([block(half, half), block(half, half)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for layer in self.inner:
            parts.append(layer(parts[-1]) + parts[-1])
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """YOLO-like: focus, C2f, fast spatial pyramid pooling, an up path, and flat predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage = block(12, 8), nn.Sequential(block(8, 16, 3, 2), SplitBlock(16))
        self.before, self.after = block(16, 8, 1), block(32, 16, 1)
        self.up, self.join = nn.Upsample(scale_factor=2), block(24, 8)
        self.heads = nn.ModuleList([nn.Conv2d(8, 3 * 7, 1), nn.Conv2d(16, 3 * 7, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        fine = self.stem(torch.cat(parts, 1))
        coarse = self.stage(fine)
        pooled = [self.before(coarse)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        coarse = self.after(torch.cat(pooled, 1))
        fine = self.join(torch.cat([self.up(coarse), fine], 1))
        flat = []
        for head, level in zip(self.heads, (fine, coarse), strict=True):
            y = head(level)
            batch, _, rows, columns = y.shape
            y = y.view(batch, 3, 7, rows, columns).permute(0, 1, 3, 4, 2).contiguous()
            flat.append(y.view(batch, -1, 7))
        predictions = torch.cat(flat, 1)
        boxes, scores = predictions.split([4, 3], -1)
        return boxes.sigmoid() * 2 - 0.5, scores.softmax(-1)


class SuperResolution(nn.Module):
    """ESPCN: everything at low resolution, then channels become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 9, 3, padding=1),
            nn.PixelShuffle(3), nn.Conv2d(1, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        base = F.interpolate(x, scale_factor=3, mode="bicubic", align_corners=False)
        return self.layers(x) + base


class AttentionGate(nn.Module):
    """A skip connection weighted by a coarser signal."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.coarse = block(3, 8), block(8, 12, 3, 2)
        self.query, self.key, self.score = (
            nn.Conv2d(12, 4, 1),
            nn.Conv2d(8, 4, 2, 2),
            nn.Conv2d(4, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(x)
        coarse = self.coarse(skip)
        key = self.key(skip)
        query = F.interpolate(
            self.query(coarse), key.shape[2:], mode="bilinear", align_corners=True
        )
        weight = torch.sigmoid(self.score(F.relu(query + key)))
        return skip * F.interpolate(weight, skip.shape[2:], mode="bilinear", align_corners=False)


class Fire(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 4, 1)
        self.one, self.three = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class Pyramid(nn.Module):
    """A feature pyramid: lateral 1x1 convolutions, coarser levels added, three answers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([block(3, 8, 3, 2), block(8, 12, 3, 2), block(12, 16, 3, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 8, 1) for c in (8, 12, 16)])
        self.smooth = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = self.lateral[2](maps[2])
        answers = {"p3": self.smooth[2](top)}
        for level in (1, 0):
            top = self.lateral[level](maps[level]) + F.interpolate(top, maps[level].shape[2:])
            answers[f"p{level + 1}"] = self.smooth[level](top)
        return answers


class Reader(nn.Module):
    """Text recognition: a convolutional stem, then a recurrent layer over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(1, 8, 3, 2), block(8, 12, 3, 2))
        self.lstm = nn.LSTM(12, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.stem(x).mean(2).transpose(1, 2)
        return self.head(self.lstm(columns)[0]).log_softmax(-1)


class Activations(nn.Module):
    """Uncommon activations one after another, with weights of their own and without."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1), nn.Mish(),
            nn.Conv2d(8, 16, 1), nn.GLU(1), nn.Conv2d(8, 8, 3, 2, 1), nn.Hardswish(),
            nn.Conv2d(8, 8, 1), nn.LocalResponseNorm(3), nn.Conv2d(8, 8, 1), nn.PReLU(), nn.ELU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class StyleTransfer(nn.Module):
    """Reflected borders, instance norm, residual blocks, nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 9, padding=4, padding_mode="reflect")
        self.down = nn.Conv2d(8, 12, 3, 2, 1, padding_mode="reflect")
        self.norms = nn.ModuleList([nn.InstanceNorm2d(c, affine=True) for c in (8, 12, 12, 8)])
        self.inner = nn.Conv2d(12, 12, 3, padding=1, padding_mode="replicate")
        self.up, self.last = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)))
        x = F.relu(self.norms[1](self.down(x)))
        x = x + self.norms[2](self.inner(x))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return torch.sigmoid(self.last(F.relu(self.norms[3](self.up(x)))))


class GroupNormResidual(nn.Module):
    """Pre-activation residual block with group norm and standardised weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, channels), nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv1.weight
        mean, deviation = weight.mean((1, 2, 3), True), weight.std((1, 2, 3), keepdim=True)
        y = F.conv2d(F.silu(self.norm1(x)), (weight - mean) / (deviation + 1e-5), padding=1)
        return x + self.conv2(F.silu(self.norm2(y)))


class Reparameterised(nn.Module):
    """RepVGG in training form: three branches added, then one activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.three, self.one = block(channels, channels)[:2], block(channels, channels, 1)[:2]
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.three(x) + self.one(x) + self.identity(x))


class SelectiveKernel(nn.Module):
    """Branches of different reach, weighted by a softmax over the branches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = block(channels, channels)
        self.far = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.squeeze, self.weigh = nn.Linear(channels, 4), nn.Linear(4, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.near(x), self.far(x)], 1)
        squeezed = F.relu(self.squeeze(both.sum(1).mean((-2, -1))))
        weights = self.weigh(squeezed).view(x.shape[0], 2, -1, 1, 1).softmax(1)
        return (both * weights).sum(1)


class SplitAttention(nn.Module):
    """Attention over the pixels of a small map: a transformer block inside a convolutional net."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.after = block(3, channels, 3, 4), block(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 16), nn.GELU(), nn.Linear(16, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(tokens)
        return self.after(tokens.transpose(1, 2).reshape(x.shape))


class ChannelsLast(nn.Module):
    """Pixels as bytes with their channels last, normalised inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([120.0, 110.0, 100.0]))
        self.net = nn.Sequential(block(3, 8, 3, 2), block(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(((x.to(self.mean.dtype) - self.mean) / 60).permute(0, 3, 1, 2)).mean((2, 3))


class Spectrogram(nn.Module):
    """Sound: a signal, a convolution over time, then a map with one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.net = (
            nn.Conv1d(1, 8, 9, 4, 4),
            nn.Sequential(block(1, 4), block(4, 4, 3, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        bands = torch.log1p(self.bank(x.unsqueeze(1)).abs())
        return self.net(bands.unsqueeze(1)).amax((2, 3))


class PlainPyramidPooling(nn.Module):
    """PSPNet's head: pools of several sizes, each spread over the map again."""

    def __init__(self) -> None:
        super().__init__()
        self.before = block(3, 8, 3, 2)
        self.levels = nn.ModuleList([block(8, 4, 1) for _ in range(4)])
        self.after = block(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        parts = [x]
        for size, level in zip((1, 2, 3, 6), self.levels, strict=True):
            y = level(F.adaptive_avg_pool2d(x, size))
            parts.append(F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True))
        return F.interpolate(self.after(torch.cat(parts, 1)), scale_factor=2, mode="bilinear")


@dataclass(frozen=True)
class HandMade:
    """A factory, the shape of its input, and layers that are known to gather rows.

    ``gathers`` are operator names of the layers that may.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    gathers: tuple[str, ...] = ()


def stem(inner: nn.Module, channels: int = 16) -> nn.Module:
    """A block between two convolutions."""
    return nn.Sequential(block(3, channels), inner, nn.LazyConv2d(4, 3, padding=1))


HAND_MADE: dict[str, HandMade] = {
    "unet_transposed": HandMade(lambda: UNet(True), (2, 3, 21, 18)),
    "unet_interpolate": HandMade(lambda: UNet(False), (1, 3, 23, 17)),
    "convnext_v2": HandMade(lambda: stem(ConvNeXtBlock(16)), (1, 3, 15, 11)),
    "cbam": HandMade(lambda: stem(AttentionModule(16)), (2, 3, 13, 9)),
    "coordinate_attention": HandMade(
        lambda: stem(CoordinateAttention(16)), (1, 3, 11, 9), ("cat", "alias")
    ),
    "ghost": HandMade(lambda: stem(Ghost(16)), (1, 3, 13, 9)),
    "yolo": HandMade(Detector, (2, 3, 36, 28), ("reshape", "permute", "cat")),
    "espcn": HandMade(SuperResolution, (1, 1, 11, 7)),
    "attention_gate": HandMade(AttentionGate, (1, 3, 18, 14)),
    "fire": HandMade(lambda: stem(Fire(16)), (1, 3, 13, 9)),
    "fpn": HandMade(Pyramid, (1, 3, 37, 29)),
    "reader": HandMade(Reader, (2, 1, 16, 30)),
    "activations": HandMade(Activations, (2, 3, 17, 9)),
    "style": HandMade(StyleTransfer, (1, 3, 22, 18)),
    "group_norm": HandMade(lambda: stem(GroupNormResidual(16)), (2, 3, 13, 9)),
    "repvgg": HandMade(lambda: stem(Reparameterised(16)), (1, 3, 13, 9)),
    "selective_kernel": HandMade(lambda: stem(SelectiveKernel(16)), (1, 3, 13, 9)),
    "attention": HandMade(
        lambda: SplitAttention(8), (1, 3, 29, 21), ("matmul", "scaled_dot_product_attention")
    ),
    "channels_last": HandMade(ChannelsLast, (2, 21, 17, 3)),
    "sound": HandMade(Spectrogram, (2, 150), ("alias",)),
    "pyramid_pooling": HandMade(PlainPyramidPooling, (1, 3, 27, 21)),
}
