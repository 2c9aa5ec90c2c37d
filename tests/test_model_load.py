"""Every source of a model gives the same frozen value, or one clear sentence."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import nn

from edgeflow_mpi.errors import InputError, ModelError
from edgeflow_mpi.model.exporting import decompose, export_module
from edgeflow_mpi.model.images import GRAY, IMAGENET
from edgeflow_mpi.model.load import InputShape, LoadedModel, load_model, parse_input_shape
from edgeflow_mpi.progress import NoProgress

FACTORIES = """
import torch
from torch import nn

class Gated(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1

class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
    def forward(self, x):
        self.calls += 1
        return x + self.calls

class Scribbling(nn.Module):
    def forward(self, x):
        x.add_(1)
        return x * 2

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
    def forward(self, tokens, scale):
        return {"sum": self.table(tokens).sum(1) * scale, "rest": (scale, [scale + 1])}

class Silent(nn.Module):
    def forward(self, x):
        return None

def conv():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))

def gray():
    return nn.Conv2d(1, 2, 3)

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))

def broken():
    raise KeyError("no such config")

def leaving():
    raise SystemExit(2)

def number():
    return 3

def poisoned():
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.bias[0] = float("nan")
    return module

constant = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of factories in the current folder, and its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "factories_for_test.py").write_text(FACTORIES)
    (tmp_path / "import_fails_for_test.py").write_text("import a_package_nobody_has")
    yield "factories_for_test"
    sys.modules.pop("factories_for_test", None)


def load(spec: str, *shapes: str, weights: Path | None = None) -> LoadedModel:
    return load_model(
        spec,
        weights=weights,
        input_shapes=[parse_input_shape(shape) for shape in shapes] or None,
        seed=0,
        progress=NoProgress(),
    )


def saved(module: nn.Module, path: Path, *args: torch.Tensor, **options: object) -> str:
    torch.export.save(torch.export.export(module, args, **options), path)  # type: ignore[arg-type]
    return str(path)


def operators(model: LoadedModel) -> list[str]:
    return [str(n.target) for n in model.program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("1,3,224,224", InputShape((1, 3, 224, 224)), id="commas"),
        pytest.param("1x16:int64", InputShape((1, 16), torch.int64), id="typed"),
        pytest.param(" 4 ", InputShape((4,)), id="one-axis"),
    ],
)
def test_input_shapes_are_read(text: str, expected: InputShape) -> None:
    assert parse_input_shape(text) == expected


@pytest.mark.parametrize("text", ["", "1,,3", "1,a", "0,3", "-1,3", "1,3:int7", "1.5"])
def test_input_shapes_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not understood: write positive sizes"):
        parse_input_shape(text)


def test_a_torchvision_model_is_captured_with_seeded_calibrated_weights() -> None:
    model = load("torchvision:squeezenet1_1", "2,3,64,64")
    assert model.name == "torchvision:squeezenet1_1"
    assert [(s.shape, s.dtype) for s in model.inputs] == [((2, 3, 64, 64), torch.float32)]
    assert model.output_names == ("output",)
    assert model.preprocessing == IMAGENET
    assert model.categories is not None and model.categories[0] == "tench"
    assert model.random_weights
    assert model.weights_note == "random weights, seed 0, calibrated on 4 photograph crops"
    assert operators(model).count("aten.conv2d.default") == 26
    assert not any(name.endswith("_.default") for name in operators(model))
    assert not model.module.training


def test_a_segmentation_model_names_its_output_and_classes() -> None:
    model = load("torchvision:lraspp_mobilenet_v3_large", "1,3,64,64")
    assert model.output_names == ("out",)
    assert model.categories is not None and len(model.categories) == 21


def test_weights_from_a_file_are_not_random(tmp_path: Path) -> None:
    source = load("torchvision:squeezenet1_1", "1,3,64,64")
    path = tmp_path / "w.pth"
    torch.save(source.module.state_dict(), path)
    model = load("torchvision:squeezenet1_1", "1,3,64,64", weights=path)
    assert not model.random_weights
    assert model.weights_note == f"weights from {path}"
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.module(x), source.module(x))


def test_a_factory_in_the_current_folder_is_captured(factories: str) -> None:
    model = load(f"{factories}:conv", "2,3,9,8")
    assert model.preprocessing == IMAGENET
    assert not model.random_weights
    assert model.weights_note == f"weights as {factories}:conv made them"
    assert model.categories is None
    assert "aten.relu.default" in operators(model)
    again = load(f"{factories}:conv", "2,3,9,8")
    assert torch.equal(model.module[0].weight, again.module[0].weight)  # type: ignore[index]


def test_a_factory_takes_weights_and_may_be_lazy(factories: str, tmp_path: Path) -> None:
    source = load(f"{factories}:lazy", "1,3,8,8")
    torch.save(source.module.state_dict(), tmp_path / "w.pth")
    model = load(f"{factories}:lazy", "1,3,8,8", weights=tmp_path / "w.pth")
    assert model.weights_note.startswith("weights from")
    assert operators(model).count("aten.linear.default") == 1


def test_several_inputs_of_several_types_and_nested_outputs(factories: str) -> None:
    model = load(f"{factories}:Two", "2,16:int64", "2,1")
    assert [(s.name, s.shape, s.dtype) for s in model.inputs] == [
        ("tokens", (2, 16), torch.int64),
        ("scale", (2, 1), torch.float32),
    ]
    assert model.output_names == ("sum", "rest.0", "rest.1.0")
    assert model.preprocessing is None


def test_gray_images_are_known_by_their_one_channel(factories: str) -> None:
    assert load(f"{factories}:gray", "1,1,9,9").preprocessing == GRAY


def test_a_saved_program_brings_its_shapes_and_weights(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout()).eval()
    x = torch.rand(1, 3, 6, 6)
    spec = saved(module, tmp_path / "m.pt2", x)
    model = load(spec)
    assert model.inputs[0].shape == (1, 3, 6, 6)
    assert not model.random_weights
    assert model.weights_note == f"weights from {spec}"
    assert torch.equal(model.module(x), module(x))
    assert load(spec, "1,3,6,6").inputs == model.inputs


def test_a_program_of_varying_shapes_is_fixed(tmp_path: Path) -> None:
    spec = saved(
        nn.Conv2d(3, 2, 3),
        tmp_path / "m.pt2",
        torch.rand(2, 3, 6, 6),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    assert load(spec).inputs[0].shape == (2, 3, 6, 6)
    assert load(spec, "5,3,6,6").inputs[0].shape == (5, 3, 6, 6)


class Point(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Shaped(nn.Module):
    """Returns its input in a container of the given kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, a: torch.Tensor) -> object:
        b = a + 1
        return {
            "tensor": b,
            "tuple": (b, a * 2),
            "named": Point(b, a * 2),
            "mapping": OrderedDict(out=b, aux=a * 2),
            "nested": [(b, a * 2), {"c": a * 3}],
            "optional": (b, None, a * 2),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        pytest.param("tensor", ("output",), id="tensor"),
        pytest.param("tuple", ("output0", "output1"), id="tuple"),
        pytest.param("named", ("x", "y"), id="named-tuple"),
        pytest.param("mapping", ("out", "aux"), id="mapping"),
        pytest.param("nested", ("output0.0", "output0.1", "output1.c"), id="nested"),
        pytest.param("optional", ("output0", "output2"), id="none-among-them"),
    ],
)
def test_outputs_are_named_after_their_place(
    kind: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("shaped_for_test")
    module.factory = lambda: Shaped(kind)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert load("shaped_for_test:factory", "2,2").output_names == names


@pytest.mark.parametrize(
    ("attribute", "shape", "message"),
    [
        pytest.param("conv", "", "the shape of the input of", id="no-shape"),
        pytest.param("missing", "1", "has no missing.", id="no-such-factory"),
        pytest.param("constant", "1", "is not something to call", id="not-callable"),
        pytest.param(
            "broken", "1", "failed when called (KeyError: 'no such config').", id="raises"
        ),
        pytest.param("leaving", "1", "failed when called (SystemExit: 2).", id="exits"),
        pytest.param("number", "1", "returned int, which is no torch.nn.Module.", id="no-module"),
        pytest.param("poisoned", "1,2", "the weight bias has values that are not", id="nan"),
        pytest.param("conv", "1,4,8,8", "does not run on an input of 1x4x8x8", id="channels"),
        pytest.param("lazy", "1", "does not run on the given shape", id="lazy-shape"),
        pytest.param("Gated", "1,3", "torch.export cannot capture", id="data-dependent"),
        pytest.param(
            "Counting", "1,3", "is stateful: it changes calls at every run", id="stateful"
        ),
        pytest.param("Scribbling", "1,3", "writes into its input x", id="writes-input"),
        pytest.param("Silent", "1,3", "returns no tensor.", id="no-output"),
    ],
)
def test_factories_that_do_not_work_are_one_sentence(
    attribute: str, shape: str, message: str, factories: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        load(f"{factories}:{attribute}", *([shape] if shape else []))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param("resnet18", "'resnet18' names no model: write torchvision:NAME", id="bare"),
        pytest.param("torchvision:resnet5", "did you mean resnet50", id="unknown-name"),
        pytest.param("missing.pt2", "there is no model file missing.pt2.", id="no-file"),
        pytest.param("torchvison:resnet18", "the module torchvison of --model", id="no-module"),
        pytest.param(
            "import_fails_for_test:f", "No module named 'a_package_nobody_has'", id="import-fails"
        ),
    ],
)
def test_models_that_do_not_exist_are_one_sentence(spec: str, message: str, factories: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load(spec)


def test_programs_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pt2"
    garbage.write_bytes(b"not a program")
    with pytest.raises(ModelError, match=r"is not a program written by torch\.export\.save"):
        load(str(garbage))
    spec = saved(nn.Conv2d(3, 2, 3), tmp_path / "m.pt2", torch.rand(1, 3, 6, 6))
    with pytest.raises(ModelError, match="takes 1x3x6x6, and --input-shape says 1x3x7x7"):
        load(spec, "1,3,7,7")
    with pytest.raises(ModelError, match="has its weights inside: leave --weights out"):
        load(spec, weights=tmp_path / "w.pth")
    training = saved(nn.BatchNorm1d(3).train(), tmp_path / "t.pt2", torch.rand(2, 3))
    with pytest.raises(ModelError, match="is stateful"):
        load(training)
    poisoned = nn.Linear(2, 2)
    with torch.no_grad():
        poisoned.weight[0, 1] = float("inf")
    with pytest.raises(ModelError, match="the weight weight has values that are not finite"):
        load(saved(poisoned, tmp_path / "p.pt2", torch.rand(1, 2)))


def test_an_image_too_small_for_the_model_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="does not run on an input of 1x3x8x8") as caught:
        load("torchvision:squeezenet1_1", "1,3,8,8")
    assert "\n" not in str(caught.value)


class Several(nn.Module):
    """Operators of several results: one of them is used, or all."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = torch.split(self.norms[0](x), 2, 1)
        return torch.cat((right, left), 1), self.norms[1](x)


def test_results_have_the_names_of_their_operators() -> None:
    program = decompose(export_module(Several().eval(), (torch.zeros(1, 4, 3, 3),), "m"), "m")
    names = [node.name for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "getitem" in name]
    assert {"batch_norm", "batch_norm_1", "split_part0", "split_part1", "cat"} <= set(names)
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs]
    assert outputs == ["cat", "batch_norm_1"]
