"""Random weights must let a lost row of the input show in the output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.model import calibrate as calibration
from edgeflow_mpi.model import torchvision_models
from edgeflow_mpi.model.calibrate import calibrate
from edgeflow_mpi.model.images import IMAGENET, photo_crops


def build(name: str) -> nn.Module:
    return torchvision_models.build(name, seed=0, weight_keys=None).module


def effect_of_one_lost_row(module: nn.Module, x: torch.Tensor) -> float:
    """Relative change of the output when one rank lacks one halo row in one convolution.

    The convolution is the middle one, in order of execution, of those that need a halo;
    its lower half is computed without the last row of the upper half.
    """
    ran: list[nn.Conv2d] = []

    def note(conv: nn.Module, _inputs: object, _output: torch.Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        if conv.kernel_size[0] > conv.stride[0]:
            ran.append(conv)

    def lose_row(
        conv: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        damaged = inputs[0].clone()
        damaged[:, :, damaged.shape[2] // 2 - 1] = 0
        middle = output.shape[2] // 2
        lower = nn.Conv2d.forward(conv, damaged)[:, :, middle:]  # type: ignore[arg-type]
        return torch.cat((output[:, :, :middle], lower), dim=2)

    with torch.no_grad():
        hooks = [m.register_forward_hook(note) for m in module.modules() if type(m) is nn.Conv2d]
        right = module(x)
        for hook in hooks:
            hook.remove()
        fault = ran[len(ran) // 2].register_forward_hook(lose_row)
        wrong = module(x)
        fault.remove()
    return float((wrong - right).abs().max() / right.abs().max())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param("inception_v3", (1, 3, 96, 96), id="inception_v3-96"),
        pytest.param("inception_v3", (1, 3, 128, 160), id="inception_v3-128x160"),
        pytest.param("googlenet", (1, 3, 96, 96), id="googlenet"),
        pytest.param("shufflenet_v2_x1_0", (1, 3, 96, 96), id="shufflenet"),
        pytest.param("convnext_tiny", (1, 3, 96, 96), id="convnext_tiny"),
    ],
)
def test_a_lost_row_shows_only_after_calibration(name: str, shape: tuple[int, ...]) -> None:
    x = photo_crops(1, (3, shape[2], shape[3]), IMAGENET, seed=7)
    module = build(name)
    before = effect_of_one_lost_row(module, x)
    note = calibrate(module, [shape], IMAGENET, seed=0)
    after = effect_of_one_lost_row(module, x)
    assert note == "calibrated on 4 photograph crops"
    assert before < 5e-5  # what hides in rounding errors, and why calibration exists
    assert after > 1e-2


def test_models_without_batch_norm_show_a_lost_row() -> None:
    module = build("squeezenet1_1")
    calibrate(module, [(1, 3, 96, 96)], IMAGENET, seed=0)
    assert effect_of_one_lost_row(module, photo_crops(1, (3, 96, 96), IMAGENET, seed=7)) > 1e-3


def test_calibration_is_deterministic_and_leaves_the_module_in_eval_mode() -> None:
    states = []
    for _ in range(2):
        torch.rand(1)  # the global generator must not matter
        module = build("mobilenet_v3_small")
        calibrate(module, [(1, 3, 64, 64)], IMAGENET, seed=3)
        states.append(module.state_dict())
        assert not any(m.training for m in module.modules())
        assert {m.momentum for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_seed_changes_the_weights_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    one = torchvision_models.build("squeezenet1_1", seed=0, weight_keys=None).module
    other = torchvision_models.build("squeezenet1_1", seed=1, weight_keys=None).module
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


class Reluctant(nn.Module):
    """Everything that default initialisation can switch off, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        nn.init.zeros_(self.norm.weight)
        self.layer_scale = nn.Parameter(torch.full((6,), 1e-6))
        self.head = nn.Linear(6, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(x) * self.layer_scale)
        return out


def test_scales_and_heads_that_start_at_zero_are_switched_on() -> None:
    module = Reluctant().eval()
    note = calibrate(module, [(1, 6)], None, seed=0)
    assert note == "calibrated on 4 random tensors"
    assert torch.equal(module.norm.weight, torch.ones(6))
    assert torch.equal(module.layer_scale, torch.ones(6))
    assert float(module.head.weight.detach().std()) > 0.1
    assert module.norm.running_mean is not None and bool(module.norm.running_mean.any())


class OneSize(nn.Module):
    """Refuses every input but that of its own height."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.height = height
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] != self.height:
            raise ValueError(f"the height must be {self.height}")
        out: torch.Tensor = self.norm(x)
        return out


def test_a_model_that_refuses_smaller_images_is_calibrated_at_its_own_size() -> None:
    module = OneSize(280).eval()
    assert calibrate(module, [(1, 3, 280, 32)], IMAGENET, seed=0).startswith("calibrated")
    assert int(module.norm.num_batches_tracked or 0) == 1


def test_a_model_that_cannot_be_calibrated_says_so() -> None:
    module = OneSize(7).eval()
    assert calibrate(module, [(1, 3, 8, 8)], IMAGENET, seed=0) == "not calibrated"
    assert not module.norm.training


def test_noise_calibrates_where_there_are_no_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_photos(*_args: object) -> torch.Tensor:
        raise InputError("no photographs")

    monkeypatch.setattr(calibration, "photo_crops", no_photos)
    module = OneSize(8).eval()
    note = calibrate(module, [(1, 3, 8, 8)], IMAGENET, seed=0)
    assert note == "calibrated on 4 random tensors"
