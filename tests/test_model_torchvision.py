"""torchvision models build without downloads, and torchvision imports beside any torch."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.model import torchvision_compat, torchvision_models
from edgeflow_mpi.model.images import Preprocessing
from edgeflow_mpi.model.torchvision_compat import import_torchvision
from edgeflow_mpi.model.torchvision_models import build, rename_published_keys


def test_torchvision_imports_silently_in_a_fresh_process_and_only_once() -> None:
    program = (
        "from edgeflow_mpi.model.torchvision_compat import import_torchvision as get\n"
        "first = get()\n"
        "assert get() is first\n"
        "print(len(first.models.list_models()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 80


def failing_import(error: Exception) -> object:
    def fail(name: str) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            "need the torchvision package",
            id="not-installed",
        ),
        pytest.param(
            ModuleNotFoundError("No module named 'PIL'", name="PIL"),
            "cannot be imported (ModuleNotFoundError: No module named 'PIL')",
            id="dependency-missing",
        ),
        pytest.param(
            RuntimeError("undefined symbol\nand more"),
            "RuntimeError: undefined symbol",
            id="broken",
        ),
    ],
)
def test_a_failing_import_is_one_sentence(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_torchvision()
    loaded = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "torchvision"}
    monkeypatch.setattr(torchvision_compat.importlib, "import_module", failing_import(error))
    try:
        with pytest.raises(ModelError) as caught:
            import_torchvision()
    finally:
        sys.modules.update(loaded)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_compiled_operators_of_torchvision_are_not_redefined() -> None:
    import_torchvision()
    assert importlib.import_module("torchvision.models") is import_torchvision().models
    assert len(torchvision_compat._libraries) <= 1


@pytest.mark.parametrize(
    ("name", "shapes", "classes", "preprocessing"),
    [
        pytest.param(
            "inception_v3",
            ((1, 3, 299, 299),),
            1000,
            Preprocessing(342, 299, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            id="inception_v3",
        ),
        pytest.param(
            "efficientnet_b0",
            ((1, 3, 224, 224),),
            1000,
            Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic"),
            id="efficientnet_b0",
        ),
        pytest.param(
            "lraspp_mobilenet_v3_large",
            ((1, 3, 520, 520),),
            21,
            Preprocessing(None, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            id="lraspp",
        ),
        pytest.param("r3d_18", ((1, 3, 16, 112, 112),), 400, None, id="video"),
        pytest.param("raft_small", ((1, 3, 128, 128),) * 2, None, None, id="optical-flow"),
    ],
)
def test_what_the_published_weights_say_is_known(
    name: str,
    shapes: tuple[tuple[int, ...], ...],
    classes: int | None,
    preprocessing: Preprocessing | None,
) -> None:
    built = build(name, seed=0, weight_keys=None)
    assert built.shapes == shapes
    assert built.preprocessing == preprocessing
    assert (len(built.categories) if built.categories else None) == classes
    assert not built.module.training


def test_an_unknown_name_is_told_its_neighbours() -> None:
    with pytest.raises(ModelError, match="no model 'resnet5': did you mean resnet50"):
        build("resnet5", seed=0, weight_keys=None)
    with pytest.raises(ModelError, match="for example resnet50"):
        build("~~~", seed=0, weight_keys=None)


def test_detection_models_are_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match="lists of varying length"):
        build("fasterrcnn_resnet50_fpn", seed=0, weight_keys=None)


def test_a_builder_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(*_args: object) -> dict[str, object]:
        return {"weights": None, "width": "no number"}

    monkeypatch.setattr(torchvision_models, "_arguments", arguments)
    with pytest.raises(ModelError, match=r"squeezenet1_1 cannot be built \(TypeError"):
        build("squeezenet1_1", seed=0, weight_keys=None)


def test_weights_decide_on_the_auxiliary_head_and_the_rescaling() -> None:
    name = "deeplabv3_mobilenet_v3_large"
    assert build(name, seed=0, weight_keys=None).module.aux_classifier is None
    published = ["aux_classifier.0.weight"]
    assert build(name, seed=0, weight_keys=published).module.aux_classifier is not None
    assert build("googlenet", seed=0, weight_keys=None).module.transform_input is False
    assert build("googlenet", seed=0, weight_keys=[]).module.transform_input is True


def test_keys_of_published_densenet_files_are_brought_up_to_date() -> None:
    old = "features.denseblock1.denselayer2.norm.1.running_mean"
    state = {old: torch.zeros(1), "classifier.bias": torch.zeros(1)}
    assert list(rename_published_keys("densenet121", state)) == [
        "features.denseblock1.denselayer2.norm1.running_mean",
        "classifier.bias",
    ]
    assert rename_published_keys("resnet18", state) is state
