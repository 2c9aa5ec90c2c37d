"""A rank that goes wrong ends the whole job, at any stage, and with a sentence."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.jobs import (
    RUN,
    SECONDS,
    Done,
    Sabotaged,
    finished,
    local,
    mixed,
    sabotaged,
    series,
    started,
)

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(200)]

RANKS = 3
CHAIN = (
    "--model", "tests.job_models:chain", "--input-shape", "1,3,32,32", "--partitioner", "equal",
    "--cache", "cache", "--no-baseline", "--warmup", 1, "--repeat", 4,
)  # fmt: skip
TINY = ("--model", "tests.job_models:tiny", *CHAIN[2:])
CHECKED = (*CHAIN, "--verify-layers")

# On a rank: how it goes wrong, with which options, and what the job says.
TOLD = {
    "another version of the package": (
        Sabotaged(1, "other_version", CHAIN),
        "runs edgeflow_mpi 9.9.9 but rank 0 runs",
    ),
    "an operator is missing": (
        Sabotaged(1, "no_operator", TINY),
        "operator aten.add_.Tensor is not in this build of torch",
    ),
    "a unit cannot be prepared": (
        Sabotaged(2, "cannot_prepare", CHAIN),
        "preparing the units failed: ValueError: this rank is broken",
    ),
    "a layer cannot be measured": (
        Sabotaged(1, "cannot_measure", (*CHAIN, "--remeasure")),
        "layer leaky_relu cannot be measured",
    ),
}
PLANTED = {"early": "leaky_relu", "middle": "leaky_relu_5", "late": "leaky_relu_9"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Done]:
    """Jobs of three ranks that end in order."""
    faults = {place: (*CHECKED, "--plant-fault", layer) for place, layer in PLANTED.items()}
    return series(
        folder,
        RANKS,
        {
            "first": CHECKED,
            **{name: job for name, (job, _) in TOLD.items()},
            "another torch": Sabotaged(1, "other_torch", CHECKED),
            "quiet": (*CHECKED, "--quiet"),
            **faults,
            "anywhere": (*CHAIN, "--plant-fault", "any"),
            "nowhere": (*CHAIN, "--plant-fault", "leaky_relu_99"),
        },
    )


@pytest.mark.parametrize("name", TOLD)
def test_what_goes_wrong_on_one_rank_is_told_on_all(name: str, outcomes: dict[str, Done]) -> None:
    job, words = TOLD[name]
    sentence = outcomes[name].failure()
    assert words in sentence
    assert sentence.startswith(f"rank {job.rank} (")
    assert outcomes[name].status == 1


def test_another_torch_is_a_warning(outcomes: dict[str, Done]) -> None:
    done = outcomes["another torch"]
    assert "all 10 layers agree" in " ".join(done.success().split())
    assert "has torch 1.2.3" in done.stdout
    assert "warning: rank 1" in done.stderr


def test_quiet_prints_only_the_result(outcomes: dict[str, Done]) -> None:
    assert "all 10 layers agree" in " ".join(outcomes["quiet"].success().split())
    assert outcomes["quiet"].stderr == ""


@pytest.mark.parametrize("place", PLANTED)
def test_a_planted_fault_is_found_in_its_layer(place: str, outcomes: dict[str, Done]) -> None:
    done = outcomes[place]
    assert done.status == 1
    (sentence,) = done.sentences
    assert sentence.startswith("edgeflow_mpi: verification failed: output is off by")
    assert sentence.endswith(f"the first layer that differs is {PLANTED[place]}")
    assert "the answer is WRONG" in done.stdout
    assert "Planted fault: rank" in done.stdout


def test_a_planted_fault_is_verified_unasked(outcomes: dict[str, Done]) -> None:
    assert outcomes["anywhere"].status == 1
    assert "verification failed" in outcomes["anywhere"].sentences[0]


def test_a_fault_cannot_be_planted_where_nothing_arrives(outcomes: dict[str, Done]) -> None:
    assert "(layers that do: leaky_relu, " in outcomes["nowhere"].failure()


def with_one(how: str, rank: int, ranks_in_all: int, *options: object) -> list[str]:
    """A job of which one rank goes wrong."""
    ranks = [(*RUN, *map(str, (*CHAIN, *options)))] * ranks_in_all
    ranks[rank] = (*sabotaged(how), *map(str, (*CHAIN, *options)))
    return mixed(*ranks)


@pytest.mark.parametrize(
    ("how", "rank", "words"),
    [
        pytest.param("no_torch", 1, "run ./launch/setup.sh on this machine", id="import"),
        pytest.param("cannot_compute", 1, "failed: ValueError: this rank is broken", id="unit"),
        pytest.param("cannot_report", 0, "unexpected ValueError", id="between-stages"),
    ],
)
def test_a_rank_that_raises_alone_ends_the_job(
    how: str, rank: int, words: str, folder: Path
) -> None:
    sentence = finished(with_one(how, rank, 2), folder=folder).failure()
    assert sentence.startswith(f"rank {rank} (")
    assert words in sentence


@pytest.mark.parametrize(
    ("how", "rank", "ranks", "words"),
    [
        # Rank 0 waits for rank 1, which waits for rank 2.
        pytest.param("stalls", 2, 3, "; rank 2 hangs, is gone, or needs more", id="in-a-unit"),
        pytest.param(
            "stalls_last", 0, 2, "rank 0 has shown no sign of life for 2 s", id="at-the-end"
        ),
    ],
)
def test_a_rank_that_hangs_is_named(
    how: str, rank: int, ranks: int, words: str, folder: Path
) -> None:
    sentence = finished(with_one(how, rank, ranks, "--timeout", 2), folder=folder).failure()
    assert words in sentence
    if how == "stalls":
        assert "no message has moved for 2 s (--timeout): unit " in sentence
        assert "waits for rows" in sentence
        assert "from rank 1" in sentence


def test_a_rank_that_is_killed_ends_the_job(folder: Path) -> None:
    done = finished(with_one("dies", 1, 2), folder=folder)
    assert done.status != 0
    assert done.stdout == ""
    assert "signal 9" in done.stderr
    assert len(done.sentences) == 1
    assert "another rank ended without a word" in done.sentences[0]
    assert not done.left
    assert done.seconds < SECONDS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "mpirun-killed"])
def test_nothing_is_left_of_a_job_that_is_stopped(number: int, folder: Path) -> None:
    endless = (*CHAIN, "--repeat", 10**7)
    with started(local(2, *endless), folder=folder) as job:
        job.wait_for("weights to the ranks that need them")
        stopped_s = time.monotonic()
        job.signal(number)
        done = job.wait(SECONDS)
        assert time.monotonic() - stopped_s < SECONDS
    assert done.status != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not done.left


def test_ctrl_c_without_mpirun(folder: Path) -> None:
    endless = (*RUN, *map(str, CHAIN), "--repeat", str(10**7))
    # Tests in the background of a shell would pass on that they ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with started(endless, folder=folder) as job:
            job.wait_for("weights to the ranks that need them")
            time.sleep(0.2)
            os.kill(job.pid, signal.SIGINT)
            done = job.wait(SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.status, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
