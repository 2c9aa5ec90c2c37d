"""What is said about the time to the first answer."""

from __future__ import annotations

import pytest

from edgeflow_mpi.report.timings import Timings

STAGES = {"import": 2.0, "capture": 3.0, "prepare": 0.1, "answer": 5.5, "baseline": 9.0}


def test_stages_are_named_in_the_order_of_the_run() -> None:
    timings = Timings.of(STAGES, ("model", "profile"))
    assert timings.first_answer_s == 5.5
    assert timings.text == (
        "5.5 s from the command to the first answer, model and profile from earlier jobs: "
        "imports 2.0 s, model 3.0 s, the rest 0.5 s"
    )


def test_all_stages_are_there_in_numbers() -> None:
    timings = Timings.of(STAGES)
    assert list(timings.stages_s)[:3] == ["launch", "import", "mpi"]
    assert timings.stages_s["prepare"] == 0.1
    assert sum(timings.stages_s.values()) == pytest.approx(5.1)


@pytest.mark.parametrize(
    ("reused", "words"),
    [
        ((), "answer: "),
        (("plan",), "answer, plan from earlier jobs: "),
        (("model", "profile", "plan"), "answer, model, profile and plan from earlier "),
    ],
    ids=["nothing", "one", "three"],
)
def test_what_earlier_jobs_had_is_listed(reused: tuple[str, ...], words: str) -> None:
    assert words in Timings.of(STAGES, reused).text


def test_nothing_is_said_of_a_time_that_nobody_took() -> None:
    assert Timings.of({"import": 2.0}).text == ""
