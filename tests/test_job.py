"""Real jobs on one to five ranks give the right answer, and say everything about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeflow_mpi.examples import digits
from edgeflow_mpi.graph.division import with_division
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.job.options import PARTITIONERS
from edgeflow_mpi.model.load import parse_input_shape
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.report.model_graph import model_graph
from edgeflow_mpi.units.compile import compile_tables
from edgeflow_mpi.units.text import save_tables
from tests.division_cases import random_division
from tests.jobs import RUN, Done, finished, mpirun, series

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(200)]

NUMBER = (int, float)
QUICK = ("--warmup", 1, "--repeat", 3, "--cache", "cache")
TINY = ("--model", "tests.job_models:tiny", "--input-shape", "1,3,32,32", *QUICK)
SMALLER = ("--model", "tests.job_models:tiny", "--input-shape", "1,3,30,32", *QUICK)
PAIR = (
    "--model", "tests.job_models:pair", "--input-shape", "2,3,33,20", "--input-shape", "2,4,33,20",
    *QUICK,
)  # fmt: skip
HALF = ("--model", "tests.job_models:bfloat16", "--input-shape", "1,3,32,32:bfloat16", *QUICK)
EQUAL, CHECKED = ("--partitioner", "equal"), ("--verify-layers",)


def torchvision(name: str) -> tuple[object, ...]:
    return ("--model", f"torchvision:{name}", "--input-shape", "1,3,64,64", *QUICK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of different sizes, and five inputs in an array."""
    place = tmp_path_factory.mktemp("job")
    generator = np.random.default_rng(0)
    (place / "images").mkdir()
    for index in range(3):
        pixels = generator.integers(0, 256, (40 + index, 50, 3), np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"{index}.png")
    np.savez(place / "five.npz", image=generator.normal(size=(5, 3, 32, 32)).astype(np.float32))
    return place


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Done]:
    """Jobs of two ranks, in this order."""
    saving = ("--save-plan", "plan.txt", "--save-profile", "profile.yaml")
    return series(
        folder,
        2,
        {
            "first": (*TINY, *CHECKED, *EQUAL, *saving, "--json", "a.json", "--output", "a.npz"),
            "again": (*TINY, *EQUAL, "--json", "b.json"),
            "plan": (*TINY, "--plan", "plan.txt", "--no-baseline", "--output", "c.npz"),
            "profile": (*TINY, "--profile", "profile.yaml", "--cache", "unused", "--no-baseline"),
            "images": (*TINY, *EQUAL, "--verify", "--input", "images", "--output", "d.npz"),
            "arrays": (*TINY, *EQUAL, "--verify", "--input", "five.npz", "--json", "e.json"),
            "bfloat16": (*HALF, *EQUAL, *CHECKED),
            "not finite": ("--model", "tests.job_models:overflow", *TINY[2:], "--verify"),
            "other shape": (*SMALLER, *EQUAL, "--save-plan", "smaller.txt"),
            "resnet18": (*torchvision("resnet18"), *CHECKED, *EQUAL),
        },
    )


@pytest.fixture(scope="module")
def three(folder: Path, two: dict[str, Done]) -> dict[str, Done]:
    """Jobs of three ranks, after those of two."""
    save_divided_plan(folder / "divided.txt")
    return series(
        folder,
        3,
        {
            **{name: (*PAIR, *CHECKED, "--partitioner", name) for name in PARTITIONERS},
            "pair": (*PAIR, *EQUAL, "--json", "pair.json", "--output", "pair.npz"),
            "divided": (*PAIR, *CHECKED, "--plan", "divided.txt", "--save-plan", "again.txt"),
            "gather": (*PAIR, *CHECKED, "--partitioner", "gather", "--save-plan", "gather.txt"),
            "gathered": (*PAIR, *CHECKED, "--plan", "gather.txt"),
            "plan of two": (*TINY, "--plan", "plan.txt"),
            "profile of two": (*TINY, "--profile", "profile.yaml"),
            "googlenet": (*torchvision("googlenet"), "--verify", *EQUAL),
        },
    )


def save_divided_plan(path: Path) -> None:
    """Any plan of the pair for three ranks, with layers that are divided by outputs and inputs."""
    shapes = [parse_input_shape(shape) for shape in PAIR[3:6:2]]
    graph = model_graph(PAIR[1], shapes, progress=NoProgress())
    division = random_division(graph, Random(0), 1.0)
    assert {how for _, how in division} == {"outputs", "inputs"}
    graph = with_division(graph, division)
    needs = Needs(graph)
    plan = replace(random_plan(graph, needs, 3, Random(1)), division=division)
    save_tables(compile_tables(graph, needs, plan), path)


@pytest.fixture(scope="module")
def altered(folder: Path, two: dict[str, Done]) -> dict[str, Done]:
    """Jobs of two ranks with plans and profiles that are not what they were."""
    plan = (folder / "plan.txt").read_text()
    assert " rows 15:16 " in plan
    (folder / "row.txt").write_text(plan.replace(" rows 15:16 ", " rows 14:16 ", 1))
    tags = plan.replace(" tag 1\n", " tag 0\n")
    assert tags != plan
    (folder / "tags.txt").write_text(tags)
    (folder / "cut.txt").write_text(plan[: len(plan) // 2])
    profile = (folder / "profile.yaml").read_text()
    (folder / "slow.yaml").write_text(profile.replace("latency", "latenzy"))
    return series(
        folder,
        2,
        {
            "row": (*TINY, "--plan", "row.txt"),
            "tags": (*TINY, "--plan", "tags.txt"),
            "cut": (*TINY, "--plan", "cut.txt"),
            "other shape": (*TINY, "--plan", "smaller.txt"),
            "other model": (*PAIR, "--plan", "plan.txt"),
            "profile of another": (*PAIR, "--profile", "profile.yaml"),
            "profile's words": (*TINY, "--profile", "slow.yaml"),
        },
    )


def right(done: Done) -> str:
    """The text of a result that was verified."""
    text = " ".join(done.success().split())
    assert "the answer is right" in text
    return text


def report(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def test_the_first_job_measures_and_verifies(two: dict[str, Done]) -> None:
    assert "all 4 layers agree" in right(two["first"])
    assert "layer shapes measured on 2 devices" in two["first"].stderr
    assert "Answer for the photograph" in two["first"].stdout


def test_the_second_measures_nothing(two: dict[str, Done]) -> None:
    two["again"].success()
    assert "reused" in two["again"].stderr
    assert "measured" not in two["again"].stderr.replace("to measure again", "")


def test_the_report_has_every_key_and_type(folder: Path, two: dict[str, Done]) -> None:
    two["again"].success()
    first, again = report(folder / "a.json"), report(folder / "b.json")
    assert again["verify"] is None
    verify = first["verify"]
    assert {type(verify[k]) for k in ("max_abs_err", "max_rel_err", "tolerance")} == {float}
    assert verify["passed"] is True
    assert verify["max_rel_err"] <= verify["tolerance"]
    assert (first["model"], first["ranks"], first["partitioner"]) == (TINY[1], 2, "equal")
    assert first["input_shape"] == [1, 3, 32, 32]
    latency = first["latency_ms"]
    assert len(latency["all"]) == 3
    assert latency["min"] == min(latency["all"])
    assert latency["min"] <= latency["median"] <= latency["p95"] <= max(latency["all"])
    assert first["single_device_ms"]["rank"] in (0, 1)
    assert first["speedup"] == pytest.approx(
        first["single_device_ms"]["median"] / latency["median"]
    )
    assert isinstance(first["predicted_ms"], float)
    ranks = first["per_rank"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    for rank in ranks:
        assert isinstance(rank["host"], str)
        for key in ("units", "rows", "bytes_sent", "messages_sent", "peak_memory_bytes"):
            assert type(rank[key]) is int, key
        for key in ("compute_ms", "wait_ms"):
            assert isinstance(rank[key], NUMBER), key
        assert rank["rows"] > 0
        assert 10**7 < rank["peak_memory_bytes"] < 10**11
        assert 0 < rank["held_memory_bytes"] <= rank["planned_memory_bytes"]
    assert first["messages"] == sum(rank["messages_sent"] for rank in ranks) > 0
    assert first["bytes_sent"] == sum(rank["bytes_sent"] for rank in ranks) > 0
    stages = {"import", "mpi", "capture", "profile", "partition", "compile", "distribute"}
    assert stages <= first["timings_s"].keys()
    assert all(isinstance(seconds, NUMBER) for seconds in first["timings_s"].values())
    assert 0 < first["timings_s"]["request"] < first["timings_s"]["first_answer"]
    assert {"edgeflow_mpi", "torch", "mpi"} <= first["versions"].keys()


def test_a_saved_plan_gives_the_same_answer_bit_by_bit(folder: Path, two: dict[str, Done]) -> None:
    two["plan"].success()
    with np.load(folder / "a.npz") as first, np.load(folder / "c.npz") as again:
        assert first.files == again.files == ["output"]
        assert np.array_equal(first["output"], again["output"])
    assert "measured" not in two["plan"].stderr.replace("to measure again", "")


def test_a_saved_profile_is_used_and_nothing_else(folder: Path, two: dict[str, Done]) -> None:
    two["profile"].success()
    assert "measured" not in two["profile"].stderr
    assert not (folder / "unused" / "profile").exists()


def test_a_folder_of_images(folder: Path, two: dict[str, Done]) -> None:
    assert "in 3 requests" in right(two["images"])
    assert all(f"Answer for {index}.png" in two["images"].stdout for index in range(3))
    with np.load(folder / "d.npz") as answers:
        assert answers["output"].shape == (3, 4)
        assert len(np.unique(answers["output"], axis=0)) == 3


def test_an_array_of_inputs(folder: Path, two: dict[str, Done]) -> None:
    assert "in 5 requests" in right(two["arrays"])
    assert "… and 2 more" in two["arrays"].stdout
    assert len(report(folder / "e.json")["latency_ms"]["all"]) == 5


def test_half_precision(two: dict[str, Done]) -> None:
    assert "all 4 layers agree" in right(two["bfloat16"])


def test_an_answer_that_is_no_number_is_not_verified(two: dict[str, Done]) -> None:
    done = two["not finite"]
    assert done.status == 1
    assert "NOT FINITE" in done.stdout
    assert done.sentences == [
        "edgeflow_mpi: verification failed: output: the reference has values that are not finite"
    ]


def test_a_residual_network_of_torchvision(two: dict[str, Done]) -> None:
    text = right(two["resnet18"])
    assert "Random weights" in text
    assert "The answer means nothing" in text


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_every_partitioner(partitioner: str, three: dict[str, Done]) -> None:
    assert "layers agree" in right(three[partitioner])


def test_several_inputs_and_outputs_in_a_batch(folder: Path, three: dict[str, Done]) -> None:
    three["pair"].success()
    with np.load(folder / "pair.npz") as answers:
        shapes = {name: answers[name].shape for name in answers.files}
        assert shapes == {
            "scores": (2, 7),
            "maps": (2, 4, 17, 10),
            "largest": (2, 17, 10),
            "same": (2, 4, 17, 10),
        }
        assert np.array_equal(answers["maps"], answers["same"])
        assert np.array_equal(answers["maps"].argmax(1), answers["largest"])
    assert report(folder / "pair.json")["input_shape"] == [[2, 3, 33, 20], [2, 4, 33, 20]]


def test_a_plan_that_divides_channels_is_run(folder: Path, three: dict[str, Done]) -> None:
    assert "layers agree" in right(three["divided"])
    assert (folder / "again.txt").read_text() == (folder / "divided.txt").read_text()


def test_a_saved_plan_with_relays_is_run(folder: Path, three: dict[str, Done]) -> None:
    assert ".relay" in (folder / "gather.txt").read_text()
    assert "partitioner gather" in right(three["gathered"])


def test_an_inception_network_of_torchvision(three: dict[str, Done]) -> None:
    right(three["googlenet"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("row", "rows 14:16", id="row-changed"),
        pytest.param("tags", "tag", id="tag-twice"),
        pytest.param("cut", "cut.txt", id="cut-short"),
        pytest.param("other shape", "it needs a plan of its own", id="other-shape"),
        pytest.param("other model", "it needs a plan of its own", id="other-model"),
        pytest.param("profile of another", "profile.yaml", id="profile-of-another-model"),
        pytest.param("profile's words", "latenzy", id="profile-of-other-words"),
    ],
)
def test_altered_files_are_refused(name: str, words: str, altered: dict[str, Done]) -> None:
    assert words in altered[name].failure()
    if not name.startswith("profile"):
        assert "measured" not in altered[name].stderr


def test_a_plan_for_other_ranks_is_refused(three: dict[str, Done]) -> None:
    sentence = three["plan of two"].failure()
    assert "the plan is for 2 ranks, this job has 3: start it with mpirun -n 2" in sentence
    assert "construct" not in three["plan of two"].stderr


def test_a_profile_of_other_devices_is_refused(three: dict[str, Done]) -> None:
    sentence = three["profile of two"].failure()
    assert "profile.yaml" in sentence
    assert "device" in sentence


def test_five_ranks(folder: Path) -> None:
    found = series(
        folder,
        5,
        {
            "tiny": (*TINY, *EQUAL, *CHECKED),
            "random": (*TINY, "--partitioner", "random", *CHECKED),
            "pair": (*PAIR, *CHECKED),
            "mobilenet": (*torchvision("mobilenet_v3_large"), *CHECKED),
        },
    )
    assert all("layers agree" in right(done) for done in found.values())


def test_digits_under_the_plain_command_of_a_cluster(folder: Path) -> None:
    """Every prediction is that of the undivided network."""
    model, heldout = folder / "digits.pt2", folder / "digits-heldout.npz"
    assert digits.main(["train", "--out", str(model), "--epochs", "2", "--batch", "60"]) == 0
    hosts = folder / "hosts.txt"
    hosts.write_text("# this machine\nlocalhost slots=3\n")
    done = finished(
        [
            mpirun(), "-hostfile", str(hosts), *RUN, "--model", "digits.pt2", "--verify",
            "--input", "digits-heldout.npz", "--output", "answers.npz", "--cache", "cache",
            "--plan-simulations", "200",
        ],
        folder=folder,
        environ={"EDGEFLOW_LOCAL": "0"},
    )  # fmt: skip
    assert "in 6 requests" in right(done)
    assert "warning: several ranks share a host" in done.stderr
    same, count, recognised = digits.compare(model, heldout, folder / "answers.npz")
    assert (same, count) == (360, 360)
    assert recognised > 0.5


def test_tests_of_real_ranks_run_under_mpirun(folder: Path) -> None:
    tests = Path(__file__).parent / "mpi"
    command = [RUN[0], "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = finished([mpirun(), "-n", "3", *command], folder=folder, timeout_s=150)
    assert done.success().count(" passed") == 3
