"""What the model answered: classes with names, maps, statistics; and the saved tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.model.inputs import Request
from edgeflow_mpi.report.answers import answer_text, own_samples, save_outputs

NAMES = ("cat", "dog", "fox", "owl", "giant panda", "zebra")
# log of probabilities, so that softmax gives exactly these back
SHARES = (0.04, 0.5, 0.05, 0.01, 0.3, 0.1)


def text(
    outputs: Sequence[Sequence[torch.Tensor]],
    *,
    requests: Sequence[str] = ("photo.jpg",),
    output_names: Sequence[str] = ("output",),
    categories: Sequence[str] | None = NAMES,
    random_weights: bool = False,
) -> list[str]:
    return answer_text(
        requests, output_names, outputs, categories=categories, random_weights=random_weights
    ).split("\n")


def scores(*shares: float) -> torch.Tensor:
    return torch.log(torch.tensor([shares]))


def test_five_most_probable_classes_with_names() -> None:
    assert text([[scores(*SHARES) + 3.0]]) == [
        "Answer for photo.jpg:",
        "  1. dog           50.0 %",
        "  2. giant panda   30.0 %",
        "  3. zebra         10.0 %",
        "  4. fox            5.0 %",
        "  5. cat            4.0 %",
    ]


def test_what_is_a_probability_already_stays_one() -> None:
    assert text([[torch.tensor([SHARES])]])[1] == "  1. dog           50.0 %"


@pytest.mark.parametrize("categories", [None, NAMES[:2]], ids=["none", "of another length"])
def test_without_names_classes_have_numbers(categories: Sequence[str] | None) -> None:
    assert text([[scores(0.25, 0.7, 0.05)]], categories=categories)[1:] == [
        "  1. class 1   70.0 %",
        "  2. class 0   25.0 %",
        "  3. class 2    5.0 %",
    ]


def test_random_weights_are_said_to_mean_nothing() -> None:
    named = text([[scores(*SHARES)]], random_weights=True)
    assert named[-1] == "The model's weights are random, so the classes mean nothing."
    unnamed = text([[torch.zeros(3)]], categories=None, random_weights=True)
    assert unnamed[-1] == "The model's weights are random, so the numbers mean nothing."


def test_every_sample_of_a_batch_has_its_answer() -> None:
    batch = torch.cat([scores(0.9, 0.1), scores(0.2, 0.8)])
    assert text([[batch]], categories=("no", "yes")) == [
        "Answer for photo.jpg, 1 of 2 in the batch:",
        "  1. no    90.0 %",
        "  2. yes   10.0 %",
        "Answer for photo.jpg, 2 of 2 in the batch:",
        "  1. yes   80.0 %",
        "  2. no    20.0 %",
    ]


def test_of_many_requests_the_first_are_shown_and_the_others_counted() -> None:
    found = text([[scores(*SHARES)]] * 355, requests=[f"{i}.png" for i in range(355)])
    assert [line for line in found if line.startswith("Answer")] == [
        "Answer for 0.png:",
        "Answer for 1.png:",
        "Answer for 2.png:",
    ]
    assert found[-1] == "… and 352 more"


def test_segmentation_gives_the_share_of_pixels() -> None:
    scores_of_pixels = torch.zeros(1, 6, 4, 5)
    scores_of_pixels[:, 4] = 1.0
    scores_of_pixels[:, 0, 0, :3] = 2.0
    assert text([[scores_of_pixels]])[1:] == [
        "  1×6×4×5 of float32, from 0 to 2, mean 0.2167",
        "  largest at each pixel:",
        "    giant panda   85.0 % of the pixels",
        "    cat           15.0 % of the pixels",
    ]


def test_other_outputs_give_shape_and_statistics_under_their_names() -> None:
    outputs = [torch.arange(24.0).reshape(2, 3, 4), torch.tensor([[3, 1, 2]]), torch.tensor(2.5)]
    assert text([outputs], output_names=("tokens", "order", "score"), categories=None)[1:] == [
        "  tokens: 2×3×4 of float32, from 0 to 23, mean 11.5",
        "  order: 1×3 of int64: 3, 1, 2",
        "  score: one number of float32: 2.5",
    ]


def test_of_several_outputs_classes_stand_under_their_own_name() -> None:
    outputs = [scores(0.25, 0.75), torch.ones(1, 1)]
    assert text([outputs], output_names=("logits", "depth"), categories=("no", "yes"))[1:] == [
        "  logits:",
        "  1. yes   75.0 %",
        "  2. no    25.0 %",
        "  depth: 1×1 of float32: 1",
    ]


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        pytest.param(
            torch.tensor([[1.0, float("nan"), float("inf")]]),
            "  1×3 of float32, 2 of 3 values are NOT FINITE (NaN or infinity)",
            id="not finite",
        ),
        pytest.param(torch.zeros(1, 0, 4), "  1×0×4 of float32, empty", id="empty"),
        pytest.param(
            torch.tensor([3 + 4j] * 9), "  9 of complex64, largest magnitude 5", id="complex"
        ),
    ],
)
def test_odd_outputs_are_described_too(tensor: torch.Tensor, line: str) -> None:
    assert text([[tensor]])[1:] == [line]


def test_a_long_name_is_shortened() -> None:
    found = text([[scores(0.75, 0.25)]], categories=("n" * 100, "short"))
    assert found[1] == f"  1. {'n' * 59}…   75.0 %"


def test_saved_outputs_have_a_key_each_and_requests_along_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    first = [torch.arange(6.0).reshape(2, 3), torch.tensor(1.0), torch.tensor([True])]
    second = [torch.arange(6.0, 12.0).reshape(2, 3), torch.tensor(2.0), torch.tensor([False])]
    # "file" is a name that numpy.savez itself cannot take.
    save_outputs(path, ("logits", "file", "mask"), [first, second])
    with np.load(path) as found:
        assert sorted(found.files) == ["file", "logits", "mask"]
        assert np.array_equal(found["logits"], np.arange(12, dtype=np.float32).reshape(4, 3))
        assert np.array_equal(found["file"], [1.0, 2.0])
        assert np.array_equal(found["mask"], [True, False])


def test_bfloat16_is_saved_as_float32(tmp_path: Path) -> None:
    save_outputs(tmp_path / "o.npz", ("x",), [[torch.tensor([1.5], dtype=torch.bfloat16)]])
    with np.load(tmp_path / "o.npz") as found:
        assert found["x"].dtype == np.float32
        assert found["x"].tolist() == [1.5]


def test_outputs_that_cannot_be_saved_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the output cannot be written to .*: there is no"):
        save_outputs(tmp_path / "no" / "o.npz", ("x",), [[torch.zeros(1)]])


def test_what_only_fills_the_batch_is_no_answer() -> None:
    inputs = (torch.zeros(3, 2),)
    outputs = (torch.arange(6).reshape(3, 2), torch.tensor(1.0), torch.ones(2, 3))
    assert own_samples(Request("whole", inputs), outputs) is outputs
    first, *others = own_samples(Request("partly", inputs, 2), outputs)
    assert first.tolist() == [[0, 1], [2, 3]]
    assert [tensor.shape for tensor in others] == [(), (2, 3)]
