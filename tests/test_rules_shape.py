"""Operators that move elements: padding, slicing, reshaping, shuffling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.rule_checks import FEW, Apply, Image, check_modules, check_needs, images

Tensor = torch.Tensor
Function = Callable[[Tensor], object]


@st.composite
def pads(draw: st.DrawFn, image: Image) -> nn.Module:
    rows, columns = image.shape[2:]
    mode = draw(st.sampled_from(["constant", "reflect", "replicate"]))
    if mode == "constant":
        amounts = st.integers(-1, 6)
        across = [draw(amounts) for _ in range(2)] if columns > 2 else [1, 2]
        down = [draw(amounts) for _ in range(2)] if rows > 2 else [0, 3]
        value = draw(st.sampled_from([0.0, 1.5, -1e3]))
        return nn.ConstantPad2d([*across, *down], value)
    limit = 0 if mode == "reflect" else 4
    across = [draw(st.integers(0, max(limit, columns - 1))) for _ in range(2)]
    down = [draw(st.integers(0, max(limit, rows - 1))) for _ in range(2)]
    pad = nn.ReflectionPad2d if mode == "reflect" else nn.ReplicationPad2d
    return pad([*across, *down])


@FEW
@given(data=st.data())
def test_padding(data: st.DataObject) -> None:
    image = data.draw(images(channels=2))
    check_modules([data.draw(pads(image)) for _ in range(6)], image.make())


def test_constant_padding_reads_no_more_than_it_must() -> None:
    image = Image((1, 2, 7, 3))
    modules = [nn.ZeroPad2d((0, 0, 3, 5)), nn.ZeroPad2d((1, 1, -2, 1)), nn.ZeroPad2d((0, 0, 9, -3))]
    check_needs(check_modules(modules, image.make()), image.make())


@FEW
@given(image=images(least=3))
def test_padding_by_convolutions_and_of_other_shapes(image: Image) -> None:
    modules: list[nn.Module] = [
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode) for mode in ("reflect", "replicate")
    ]
    modules += [
        Apply(lambda x: F.pad(x, (1, 2))),
        Apply(lambda x: F.pad(x, (1, 2, 0, 0), mode="replicate")),
        Apply(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
        Apply(lambda x: F.pad(x, (1, 2, 0, 0), mode="circular")),
        Apply(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").relu()),
        Apply(lambda x: F.pad(x, (0, 0, 1, -1))),
    ]
    check_modules(modules, image.make())


def test_rows_that_wrap_around_stay_together() -> None:
    image = Image((2, 4, 7, 5)).make()
    modules = [
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        Apply(lambda x: F.pad(x, (0, 0, 1, 2), mode="circular")),
    ]
    check_modules(modules, image, splits=None)


MOVES: dict[str, Function] = {
    "permute": lambda x: x.permute(0, 2, 3, 1), "transpose": lambda x: x.transpose(1, 2),
    "movedim": lambda x: x.movedim(1, -1), "swap": lambda x: x.swapaxes(2, 3) + 1,
    "unsqueeze": lambda x: x.unsqueeze(1).unsqueeze(-1), "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze_all": lambda x: x[:, :1].squeeze(), "squeeze_rows": lambda x: x.squeeze(2),
    "squeeze_several": lambda x: x.unsqueeze(0).squeeze((0, 3)),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x), "repeat": lambda x: x.repeat(2, 1, 1, 3),
    "tile": lambda x: x.tile(1, 2, 1, 1), "concat": lambda x: torch.concat([x, x], 1),
    "select": lambda x: x[:, 2], "select_column": lambda x: x[..., -1],
    "none": lambda x: x[..., None, :], "unbind": lambda x: x.unbind(1),
    "narrow": lambda x: x.narrow(1, 1, 2), "slice_channels": lambda x: x[:, 1::2],
    "slice_all": lambda x: x[:, 1:3, 1:, :-1], "slice_from_end": lambda x: x[:, :, -2:],
    "step": lambda x: x[:, :, ::2, 1::2], "step_behind": lambda x: x[:, :, 1::3],
    "slice_far": lambda x: x[:, :, 1:100], "channel_split": lambda x: x.split((1, 3), 1),
    "tensor_split": lambda x: x.tensor_split(3, 1), "row_split": lambda x: x.split(2, 2),
    "row_chunk": lambda x: x.chunk(2, 2), "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :4, :2], 2),
    "channel_shuffle": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:])
    .transpose(1, 2).flatten(1, 2),
    "flatten": lambda x: x.flatten(2), "flatten_last": lambda x: x.permute(0, 2, 3, 1).flatten(2),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).relu(), "view": lambda x: x.view(*x.shape, 1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "blocks": lambda x: x[:, :, :4].reshape(*x.shape[:2], 2, 2, x.shape[3]),
    "blocks_of_one": lambda x: x.reshape(*x.shape[:3], 1, x.shape[3]),
    "by_hand": lambda x: x.view(x.shape[0], 1, 2, 2, *x.shape[2:]).permute(0, 1, 4, 2, 5, 3)
    .reshape(x.shape[0], 1, 2 * x.shape[2], 2 * x.shape[3]),
    "back": lambda x: x[:, :, :4, :2].reshape(x.shape[0], 4, 2, 2, 1, 2).permute(0, 1, 3, 5, 2, 4)
    .reshape(x.shape[0], 16, 2, 1),
    "one_sample": lambda x: x[:1].permute(0, 2, 3, 1).reshape(x.shape[2] * x.shape[3], 4),
    "clone": lambda x: x.clone().contiguous(), "diff": lambda x: x.diff(dim=1),
    "pick": lambda x: x[:, torch.tensor([2, 0])], "zeros": lambda x: x + torch.zeros_like(x),
    "ones": lambda x: torch.cat([x, x.new_ones(x.shape[0], 1, *x.shape[2:])], 1),
    "focus": lambda x: torch.cat(
        [x[:, :, :-1:2, :1], x[:, :, 1::2, -1:], -x[:, :, :-1:2, :1], x[:, :, 1::2, -1:]], 1
    ),
}  # fmt: skip


@FEW
@given(image=images(least=4))
def test_moves(image: Image) -> None:
    check_modules([Apply(function) for function in MOVES.values()], image.make())


def test_moves_of_a_single_column() -> None:
    """Where several dimensions have the same extents, the rows must not be mistaken."""
    names = ("permute", "squeeze_several", "flatten", "tokens", "view", "swap", "unsqueeze")
    for shape in ((2, 4, 4, 1), (1, 1, 4, 4), (4, 4, 4, 4)):
        functions = [MOVES[name] for name in names]
        functions += [lambda x: x.reshape(x.shape[0], -1, 4, 1), lambda x: x.reshape(1, -1)]
        check_modules([Apply(f) for f in functions], Image(shape).make(), splits=None)


WHOLE: dict[str, Function] = {
    "flip": lambda x: x.flip(2), "roll": lambda x: x.roll(1, 2), "softmax": lambda x: x.softmax(2),
    "cumsum": lambda x: x.cumsum(2), "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "interleave": lambda x: x.repeat_interleave(2, 2), "row": lambda x: x[:, :, 1],
    "rows": lambda x: x[:, :, [0, 2]], "unbind": lambda x: x.unbind(2),
    "unfold": lambda x: F.unfold(x, 3, padding=1), "product": lambda x: x.flatten(0, 1) @ x[0, 0].T,
    "sort": lambda x: x.sort(2)[1], "spectrum": lambda x: torch.fft.rfft2(x).abs(),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncd", x, x), "argmax": lambda x: x.argmax(),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "softmax_map": lambda x: x.flatten(2).softmax(2),
    "logsumexp": lambda x: x.logsumexp((2, 3)), "any": lambda x: (x > 2).any(2),
}  # fmt: skip


@FEW
@given(image=images(least=3))
def test_what_has_no_rule_runs_whole(image: Image) -> None:
    check_modules([Apply(function) for function in WHOLE.values()], image.make(), splits=False)


@pytest.mark.parametrize("rows", [1, 6])
def test_a_recurrent_layer_over_columns(rows: int) -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            sequence, _ = self.lstm(x.mean(2).transpose(1, 2))
            return sequence + 1

    check_modules([Columns()], torch.randn(2, 3, rows, 4), splits=None)
