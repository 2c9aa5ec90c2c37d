"""Weights come from safe files, fit the model exactly, and are finite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.model import torchvision_models
from edgeflow_mpi.model.weights import check_finite, load_weights, read_weights

State = dict[str, torch.Tensor]


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state() -> State:
    torch.manual_seed(5)
    return dict(small().state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda s: s, id="plain"),
        pytest.param(lambda s: {"state_dict": s, "epoch": 3}, id="state_dict"),
        pytest.param(lambda s: {"model": s}, id="model"),
        pytest.param(lambda s: {f"module.{k}": v for k, v in s.items()}, id="data-parallel"),
        pytest.param(lambda s: {k: v for k, v in s.items() if "num_b" not in k}, id="no-counter"),
    ],
)
def test_a_state_dict_is_found_wherever_it_is(
    wrap: Callable[[State], object], state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap(state), path)
    module = small()
    load_weights(module, read_weights(path), path)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_safetensors_are_read(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    module = small()
    load_weights(module, read_weights(path), path)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_modules_that_ask_for_a_version_take_files_without_one(tmp_path: Path) -> None:
    source = torchvision_models.build("mnasnet0_5", seed=1, weight_keys=None).module
    path = tmp_path / "w.safetensors"
    save_file(dict(source.state_dict()), path)
    module = torchvision_models.build("mnasnet0_5", seed=2, weight_keys=None).module
    load_weights(module, read_weights(path), path)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in module.state_dict().items())


def test_a_weight_that_two_names_share_may_be_in_the_file_once(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    weight = torch.full((4, 4), 2.0)
    load_weights(tied, {"0.weight": weight}, tmp_path / "w.pth")
    assert torch.equal(tied[1].weight, weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda s: {k: v for k, v in s.items() if k != "1.weight"},
            "it lacks 1.weight.",
            id="missing",
        ),
        pytest.param(
            lambda s: {f"body.{k}": v for k, v in s.items()},
            "it lacks 0.weight, 0.bias, 1.weight and 3 more and has body.0.weight",
            id="other-names",
        ),
        pytest.param(
            lambda s: s | {"2.weight": torch.zeros(1)}, "which has no 2.weight.", id="unknown"
        ),
        pytest.param(
            lambda s: s | {"0.weight": torch.zeros(4, 3, 5, 5)},
            "0.weight is [4, 3, 5, 5] in the file and [4, 3, 3, 3] in the model.",
            id="shape",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[State], State], message: str, state: State
) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load_weights(small(), change(state), Path("w.pth"))


def write_nothing(path: Path) -> None:
    pass


def write_garbage(path: Path) -> None:
    path.write_bytes(b"no weights at all" * 10)


def write_module(path: Path) -> None:
    torch.save(small(), path)


def write_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        pytest.param("w.pth", write_nothing, "there is no weights file", id="missing"),
        pytest.param("w.pth", write_garbage, "damaged or holds more than tensors", id="garbage"),
        pytest.param("w.safetensors", write_garbage, "cannot be read", id="safetensors-garbage"),
        pytest.param("w.pth", write_module, "holds more than tensors", id="whole-module"),
        pytest.param("w.pth", write_list, "holds no state dict", id="list"),
    ],
)
def test_files_that_hold_no_weights_are_one_sentence(
    name: str, write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ModelError, match=message) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_parameters_and_statistics_must_be_finite(bad: float) -> None:
    tensor = torch.tensor([1.0, bad])
    with pytest.raises(ModelError, match=r"the weight conv\.weight has values that are not finite"):
        check_finite([("ok", torch.zeros(2)), ("conv.weight", tensor)], [])
    with pytest.raises(ModelError, match=r"bn\.running_var"):
        check_finite([], [("bn.running_var", tensor)])


def test_masks_of_minus_infinity_are_allowed_but_no_nan() -> None:
    mask = torch.tensor([0.0, float("-inf")])
    check_finite([], [("mask", mask), ("index", torch.tensor([1, 2]))])
    with pytest.raises(ModelError, match="mask"):
        check_finite([], [("mask", mask * 0)])
