"""The oracle: plain torch in float32, and really in float64."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.model import reference
from edgeflow_mpi.model.exporting import decompose, export_module, input_specs, output_names
from edgeflow_mpi.model.load import LoadedModel, load_model
from edgeflow_mpi.model.reference import evaluate, reference_layers, reference_outputs
from edgeflow_mpi.progress import NoProgress


def model_of(module: nn.Module, *examples: torch.Tensor) -> LoadedModel:
    module = module.eval()
    program = decompose(export_module(module, examples, "m"), "m")
    return LoadedModel(
        name="m",
        program=program,
        module=module,
        inputs=input_specs(program, "m"),
        output_names=output_names(program, "m"),
        preprocessing=None,
        categories=None,
        random_weights=False,
        weights_note="",
    )


class Plain(nn.Module):
    """Convolutions, a buffer, and constants made on the way without a type."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("shift", torch.rand(3, 1, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.norm(self.conv(x))) + self.shift
        return {"maps": y / 3, "means": y.mean((2, 3)) * torch.full((3,), 1 / 3)}


class Narrowing(Plain):
    """Goes through float32 whatever its weights are."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.softmax(self.conv(x), 1, dtype=torch.float32).float()
        return {"maps": y / 3}


class Sticking(Plain):
    """Has a float32 tensor that is neither parameter nor buffer, so widening fails."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = torch.rand(3, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"maps": torch.matmul(self.mixing, self.conv(x).flatten(2))}


def by_hand(module: Plain, x: torch.Tensor) -> torch.Tensor:
    """The first output of each module above in float64, written out."""
    weight, bias = module.conv.weight.detach().double(), module.conv.bias.detach().double()  # type: ignore[union-attr]
    y = nn.functional.conv2d(x.double(), weight, bias, padding=1)
    if isinstance(module, Narrowing):
        return torch.softmax(y, 1) / 3
    if isinstance(module, Sticking):
        return module.mixing.double() @ y.flatten(2)
    mean, var = (t.double() for t in (module.norm.running_mean, module.norm.running_var))  # type: ignore[union-attr]
    scale = module.norm.weight.detach().double() / torch.sqrt(var + module.norm.eps)
    y = (y - mean[:, None, None]) * scale[:, None, None]
    y = y + module.norm.bias.detach().double()[:, None, None]
    return (torch.relu(y) + module.shift.double()) / 3


@pytest.mark.parametrize("kind", [Plain, Narrowing, Sticking])
def test_the_float64_reference_is_exact(kind: type[Plain]) -> None:
    torch.manual_seed(0)
    module = kind()
    nn.init.uniform_(module.norm.weight)
    nn.init.uniform_(module.norm.bias)
    x = torch.randn(2, 2, 5, 4)
    model = model_of(module, x)
    wide = reference_outputs(model, [x], torch.float64)
    plain = reference_outputs(model, [x], torch.float32)
    assert [t.dtype for t in wide] == [torch.float64] * len(wide)
    assert [t.dtype for t in plain] == [torch.float32] * len(plain)
    exact = by_hand(module, x)
    assert float((wide[0] - exact).abs().max()) < 1e-14
    assert 1e-10 < float((plain[0] - exact).abs().max()) < 1e-5
    assert torch.get_default_dtype() == torch.float32
    assert module.conv.weight.dtype == torch.float32


def test_constants_without_a_type_do_not_narrow_the_reference() -> None:
    x = torch.randn(1, 2, 5, 4)
    model = model_of(Plain(), x)
    maps, means = reference_outputs(model, [x], torch.float64)
    assert float((means - maps.mean((2, 3))).abs().max()) < 1e-15


def test_the_wide_copy_is_made_once_and_goes_with_the_module() -> None:
    x = torch.randn(1, 2, 5, 4)
    model = model_of(Plain(), x)
    before = len(reference._widened)
    first = reference_outputs(model, [x], torch.float64)
    again = reference_outputs(model, [x], torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(reference._widened) == before + 1
    del model
    gc.collect()
    assert len(reference._widened) <= before


def test_a_program_that_is_not_the_module_is_no_reference() -> None:
    x = torch.randn(1, 2, 5, 4)
    other, model = model_of(Narrowing(), x), model_of(Narrowing(), x)
    mixed = replace(model, program=other.program)
    with pytest.raises(ModelError, match="does not compute what the module does"):
        reference_outputs(mixed, [x], torch.float64)


def test_a_module_that_fails_is_one_sentence() -> None:
    x = torch.randn(1, 2, 5, 4)
    model = model_of(Plain(), x)
    with pytest.raises(ModelError, match="m fails in plain torch") as caught:
        reference_outputs(model, [x[:, :1]], torch.float32)
    assert "\n" not in str(caught.value)


def test_only_two_types_of_reference_exist() -> None:
    x = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match="float32 or float64"):
        reference_outputs(model_of(Plain(), x), [x], torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_layers_are_those_of_the_program(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 5, 4)
    model = model_of(Plain(), x)
    computed = [n.name for n in model.program.graph.nodes if n.op == "call_function"]
    tensors = [n for n in computed if isinstance(_meta(model, n), torch.Tensor)]
    values = reference_layers(model.program, [x], dtype, tensors)
    assert set(values) == set(tensors)
    assert {v.dtype for v in values.values()} == {dtype}
    assert all(values[n].shape == _meta(model, n).shape for n in tensors)
    outputs = reference_outputs(model, [x], dtype)
    returned = model.program.graph.output_node().args[0]
    for node, output in zip(returned, outputs, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(values[node.name], output, rtol=0, atol=1e-6)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="nowhere"):
        reference_layers(model.program, [x], dtype, ["nowhere"])


def _meta(model: LoadedModel, name: str) -> torch.Tensor:
    node = next(n for n in model.program.graph.nodes if n.name == name)
    return node.meta["val"]  # type: ignore[no-any-return]


def test_values_are_let_go_after_their_last_use() -> None:
    module = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(6)))
    x = torch.randn(1, 2, 4, 4)
    model = model_of(module, x)
    made: list[weakref.ref[torch.Tensor]] = []
    alive_at_once = []
    for _name, value in evaluate(model.program, [x], torch.float64):
        if isinstance(value, torch.Tensor):
            made.append(weakref.ref(value))
            alive_at_once.append(sum(tensor() is not None for tensor in made))
    assert len(made) == 6
    assert max(alive_at_once) <= 3


def test_a_saved_program_with_keywords_and_containers_is_called_as_it_was(tmp_path: Path) -> None:
    class Keyed(nn.Module):
        def forward(self, pair: dict[str, torch.Tensor], *, scale: torch.Tensor) -> torch.Tensor:
            return pair["a"] * scale + pair["b"].float()

    pair = {"a": torch.rand(2, 3), "b": torch.ones(2, 3, dtype=torch.int64)}
    scale = torch.rand(3)
    program = torch.export.export(Keyed(), (pair,), {"scale": scale})
    torch.export.save(program, tmp_path / "m.pt2")
    model = load_model(
        str(tmp_path / "m.pt2"), weights=None, input_shapes=None, seed=0, progress=NoProgress()
    )
    assert [s.shape for s in model.inputs] == [(2, 3), (2, 3), (3,)]
    tensors = (pair["a"], pair["b"], scale)
    (plain,) = reference_outputs(model, tensors, torch.float32)
    (wide,) = reference_outputs(model, tensors, torch.float64)
    assert torch.equal(plain, pair["a"] * scale + 1)
    assert torch.equal(wide, pair["a"].double() * scale.double() + 1)
