"""What a user can get wrong is one clear sentence, before any long work, and a failed job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.jobs import Done, finished, local, series

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(200)]

MODELS = "tests.job_models:"
SHAPE = ("--input-shape", "1,3,32,32")
QUICK = ("--repeat", 1, "--warmup", 0, "--cache", "cache")


def model(name: str, *options: object) -> tuple[object, ...]:
    return ("--model", f"{MODELS}{name}", *QUICK, *options)


TINY = model("tiny", *SHAPE)

# The options, and words that the sentence must have.
MISUSED: Mapping[str, tuple[Sequence[object], str]] = {
    "unknown option": (("--modle", "x"), "unrecognized arguments: --modle"),
    "abbreviated option": (("--verif",), "unrecognized arguments: --verif"),
    "option without value": (("--model",), "--model: expected one argument"),
    "no requests": (("--repeat", 0), "--repeat: 0 is not at least 1"),
    "negative warm-up": (("--warmup", -1), "--warmup: -1 is negative"),
    "no threads": (("--threads", 0), "--threads: 0 is not at least 1"),
    "threads in words": (("--threads", "many"), "--threads: invalid number value: 'many'"),
    "no time": (("--timeout", 0), "--timeout: 0 is not a positive number"),
    "time that is no number": (("--timeout", "nan"), "--timeout: nan is not a positive"),
    "unknown partitioner": (("--partitioner", "lpp"), "invalid choice: 'lpp' (choose from"),
    "profile and measuring": (("--profile", "p", "--remeasure"), "leave one out"),
    "plan and partitioner": (("--plan", "p", "--partitioner", "lp"), "--partitioner is about"),
    "plan and search": (("--plan", "p", "--plan-seconds", 3), "--plan-seconds is about making"),
}

REFUSED: Mapping[str, tuple[Sequence[object], str]] = {
    "torchvision name": (("--model", "torchvision:resnet19"), "did you mean resnet18"),
    "model without a source": (("--model", "resnet18"), "torchvision:NAME, FILE.pt2 or"),
    "no program": (("--model", "absent.pt2"), "there is no model file absent.pt2"),
    "damaged program": (("--model", "garbage.pt2"), "is not a program written by torch.export"),
    "no such module": (("--model", "no.such:net", *SHAPE), "module no.such of --model"),
    "no such factory": (model("nothing", *SHAPE), "has no nothing"),
    "factory that raises": (model("raises", *SHAPE), "failed when called (OSError: the disk is"),
    "factory of a number": (model("number", *SHAPE), "returned int, which is no torch.nn.Module"),
    "no factory": (model("answer", *SHAPE), "is not something to call"),
    "factory without a shape": (model("tiny"), "give it with --input-shape"),
    "depends on data": (model("branchy", *SHAPE), "torch.export cannot capture"),
    "stateful": (model("stateful", *SHAPE), "is stateful: it changes count"),
    "weights that are not finite": (
        model("broken_weights", *SHAPE),
        "second.weight has values that are not finite",
    ),
    "shape in words": (model("tiny", "--input-shape", "banana"), "'banana' is not understood"),
    "shape with a zero": (model("tiny", "--input-shape", "1,3,0,4"), "write positive sizes"),
    "wrong channels": (model("tiny", "--input-shape", "1,4,32,32"), "to have 3 channels"),
    "too small": (model("branchy", "--input-shape", "1,3,2,2"), "does not run on an input of"),
    "a shape too many": (model("tiny", *SHAPE, *SHAPE), "1x3x32x32 and 1x3x32x32"),
    "no weights file": ((*TINY, "--weights", "absent.pt"), "there is no weights file absent.pt"),
    "damaged weights": ((*TINY, "--weights", "garbage.pt2"), "damaged or holds more than tensors"),
    "weights of another size": (
        (*TINY, "--weights", "other.pt"),
        "first.weight is [1] in the file and [8, 3, 3, 3] in the model",
    ),
    "weights that lack some": ((*TINY, "--weights", "few.pt"), "it lacks first.bias"),
    "no image": ((*TINY, "--input", "absent.jpg"), "there is no input absent.jpg"),
    "folder without images": ((*TINY, "--input", "empty"), "the folder empty has no images"),
    "text for an image": ((*TINY, "--input", "text.png"), "text.png is not an image"),
    "damaged array": ((*TINY, "--input", "garbage.npz"), "is not a NumPy file that can be read"),
    "array of another shape": (
        (*TINY, "--input", "shape.npz"),
        "has the shape 1x3x30x30 in place of 1x3x32x32",
    ),
    "array of another type": ((*TINY, "--input", "type.npz"), "int64 in place of float32"),
    "values that are not finite": ((*TINY, "--input", "nan.npz"), "values that are not finite"),
    "array of another name": ((*TINY, "--input", "names.npz"), "has the arrays a, b, and"),
    "image for a table": (
        model("unlike", "--input-shape", "1,5", "--input", "red.png"),
        "which is not an image",
    ),
    "pixels for a table": (
        model("unlike", "--input-shape", "1,5", "--input-dtype", "uint8"),
        "--input-dtype uint8 is for models that take one image",
    ),
    "report in no folder": ((*TINY, "--json", "no/r.json"), "report cannot be written to no/r"),
    "report on a folder": ((*TINY, "--json", "empty"), "written to empty: it is a folder"),
    "answers in no folder": ((*TINY, "--output", "no/a.npz"), "output cannot be written to no/a"),
    "plan in no folder": ((*TINY, "--save-plan", "no/p"), "plan cannot be written to no/p"),
    "profile on a folder": ((*TINY, "--save-profile", "empty"), "profile cannot be written to"),
    "no plan": ((*TINY, "--plan", "absent.txt"), "cannot read the plan absent.txt"),
    "no profile": ((*TINY, "--profile", "absent.yaml"), "there is no profile absent.yaml"),
    "text for a plan": ((*TINY, "--plan", "text.png"), "text.png is not a saved plan"),
    "text for a profile": ((*TINY, "--profile", "text.png"), "the profile text.png"),
    "fault where nothing travels": ((*TINY, "--plant-fault", "any"), "no layer does"),
}

# Found out before the model is loaded.
EARLY = (
    "no image", "folder without images", "text for an image", "damaged array", "no plan",
    "no profile", "text for a plan",
)  # fmt: skip
# Found out only by the work itself.
LATE = ("text for a profile", "fault where nothing travels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are not what they should be."""
    place = tmp_path_factory.mktemp("input")
    (place / "empty").mkdir()
    for name in ("garbage.pt2", "garbage.npz"):
        (place / name).write_bytes(b"garbage")
    Image.new("RGB", (5, 4), (255, 0, 0)).save(place / "red.png")
    (place / "text.png").write_text("Call me Ishmael.\n")
    torch.save({"first.weight": torch.zeros(1)}, place / "other.pt")
    torch.save({"first.weight": torch.zeros(8, 3, 3, 3)}, place / "few.pt")
    image = np.zeros((1, 3, 32, 32), np.float32)
    np.savez(place / "shape.npz", image=image[:, :, :30, :30])
    np.savez(place / "type.npz", image=image.astype(np.int64))
    np.savez(place / "nan.npz", image=image * np.nan)
    np.savez(place / "names.npz", a=image, b=image)
    return place


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Done]:
    """All of these jobs, on one rank, and a sound one after them."""
    jobs = {name: options for name, (options, _) in (*MISUSED.items(), *REFUSED.items())}
    return series(folder, 1, {**jobs, "sound": (*TINY, "--verify")})


@pytest.mark.parametrize("name", MISUSED)
def test_a_wrong_command_line_is_one_sentence(name: str, outcomes: dict[str, Done]) -> None:
    sentence = outcomes[name].failure()
    assert MISUSED[name][1] in sentence
    assert outcomes[name].status == 2
    assert outcomes[name].stderr.count("\n") == 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_one_sentence(name: str, outcomes: dict[str, Done]) -> None:
    sentence = outcomes[name].failure()
    assert REFUSED[name][1] in sentence
    assert outcomes[name].status == 1
    if name not in LATE:
        assert "measured" not in outcomes[name].stderr
    if name in EARLY:
        assert "construct" not in outcomes[name].stderr


def test_a_sound_job_goes_well_after_all_these(outcomes: dict[str, Done]) -> None:
    assert "the answer is right" in outcomes["sound"].success()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        pytest.param(("--modle", "x"), 2, "unrecognized arguments: --modle", id="command line"),
        pytest.param(("--model", "torchvision:resnet19"), 1, "resnet18", id="model"),
    ],
)
def test_the_whole_job_fails(options: Sequence[str], status: int, words: str, folder: Path) -> None:
    done = finished(local(2, *options), folder=folder)
    assert words in done.failure()
    assert done.status == status


def test_help_is_printed_once(folder: Path) -> None:
    done = finished(local(3, "--help"), folder=folder)
    assert done.success().count("usage: python -m edgeflow_mpi.run") == 1
    assert done.stderr == ""
