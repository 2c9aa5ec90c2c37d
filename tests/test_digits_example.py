"""The digits example trains for real, and its comparison can fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeflow_mpi.examples import digits
from edgeflow_mpi.model.inputs import load_inputs
from edgeflow_mpi.model.load import LoadedModel, load_model
from edgeflow_mpi.progress import NoProgress

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The program that the command writes, trained a little shorter than by default."""
    out = folder / "digits.pt2"
    assert digits.main(["train", "--out", str(out), "--epochs", "8", "--batch", "90"]) == 0
    return out


@pytest.fixture(scope="module")
def model(trained: Path) -> LoadedModel:
    return load_model(str(trained), weights=None, input_shapes=None, seed=0, progress=NoProgress())


@pytest.fixture(scope="module")
def plain_answers(trained: Path, model: LoadedModel) -> list[np.ndarray]:
    """Logits of plain torch, one array for each of the four requests."""
    requests = load_inputs(trained.with_name("digits-heldout.npz"), model)
    with torch.no_grad():
        return [model.module(*request.tensors).numpy() for request in requests]


def compare(trained: Path, answers: Path) -> int:
    heldout = trained.with_name("digits-heldout.npz")
    return digits.main(
        ["compare", "--model", str(trained), "--heldout", str(heldout), "--answers", str(answers)]
    )


def test_training_reaches_97_percent_on_images_it_has_not_seen(
    trained: Path, plain_answers: list[np.ndarray]
) -> None:
    with np.load(trained.with_name("digits-heldout.npz")) as file:
        labels = file["labels"]
        assert file["images"].shape == (digits.HELD_OUT, 1, 8, 8)
    right = np.concatenate(plain_answers).argmax(1) == labels
    assert float(right.mean()) >= 0.97


def test_the_held_out_images_are_not_trained_on() -> None:
    data = digits.load_digits(seed=0)
    assert len(data.images) + len(data.heldout_images) == 1797
    seen = {image.numpy().tobytes() for image in data.images}
    assert not any(image.numpy().tobytes() in seen for image in data.heldout_images)


def test_the_network_has_sums_and_concatenations(model: LoadedModel) -> None:
    operators = [str(n.target) for n in model.program.graph.nodes if n.op == "call_function"]
    assert operators.count("aten.cat.default") == 2
    assert operators.count("aten.add.Tensor") == 2
    assert model.inputs[0].name == "images" and model.inputs[0].shape == (90, 1, 8, 8)


@pytest.mark.parametrize("joined", [np.concatenate, np.stack], ids=["joined", "stacked"])
def test_equal_predictions_are_confirmed(
    joined: Callable[[list[np.ndarray]], np.ndarray],
    trained: Path,
    plain_answers: list[np.ndarray],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(folder / "same.npz", output=joined(plain_answers))
    assert compare(trained, folder / "same.npz") == 0
    assert "360 of 360 predictions are those of plain torch" in capsys.readouterr().out


def test_one_other_prediction_is_found(
    trained: Path, plain_answers: list[np.ndarray], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = np.concatenate(plain_answers)
    answers[17] = np.roll(answers[17], 1)
    np.savez(folder / "other.npz", output=answers)
    assert compare(trained, folder / "other.npz") == 1
    assert "359 of 360 predictions" in capsys.readouterr().out


def test_answers_of_another_run_are_one_sentence(
    trained: Path, plain_answers: list[np.ndarray], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(folder / "short.npz", output=plain_answers[0])
    assert compare(trained, folder / "short.npz") == 1
    assert "has answers for 90 images, not for 360" in capsys.readouterr().err
    np.savez(folder / "names.npz", logits=plain_answers[0])
    assert compare(trained, folder / "names.npz") == 1
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--out", "digits.onnx"], "has to be written to a .pt2 file", id="suffix"),
        pytest.param(["--batch", "7"], "a batch of 7 does not divide 360", id="batch"),
        pytest.param(["--out", "no/such/folder/d.pt2"], "cannot be written", id="folder"),
    ],
)
def test_options_that_cannot_work_are_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert digits.main(["train", "--epochs", "1", *arguments]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.strip().split("\n")[-1].startswith("error: ")
