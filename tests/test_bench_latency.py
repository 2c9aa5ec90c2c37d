"""The latency bench: once for real, small, and the page that it writes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import latency
from tests.jobs import ROOT, finished, started

COMMAND = [str(ROOT / "bench" / "latency")]


def made_up_run(partitioner: str, latency_ms: float, **changes: Any) -> dict[str, Any]:
    run = {
        "model": "torchvision:resnet18",
        "ranks": 3,
        "partitioner": partitioner,
        "latency_ms": {"median": latency_ms, "p95": 2 * latency_ms},
        "single_device_ms": {"median": 30.0, "rank": 1},
        "speedup": 30.0 / latency_ms,
        "predicted_ms": 10.0,
        "used_ranks": [0, 2],
        "messages": 7,
        "bytes_sent": 1_500_000,
        "versions": {"torch": "2.13.0", "mpi": "Open MPI v5.0.11"},
    }
    return {**run, **changes}


def made_up_result(*runs: dict[str, Any], load: float = 0.25) -> latency.Result:
    machine = {
        "processor": "a processor",
        "cores": 2,
        "memory_bytes": 8 * 2**30,
        "system": "Linux",
        "python": "3.11.7",
        "load_before": load,
    }
    return latency.Result("bench/latency", latency.FULL, machine, "2026-01-02 03:04 UTC", runs)


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_runs(tmp_path: Path) -> None:
    results, page = tmp_path / "latency.json", tmp_path / "latency.md"
    done = finished(
        [*COMMAND, "--small", "--json", str(results), "--markdown", str(page)],
        environ={"OMP_NUM_THREADS": "1"},
        timeout_s=250,
    )
    printed = done.success()
    assert printed == page.read_text()
    found = json.loads(results.read_text())
    runs = found["runs"]
    measured = [(run["model"], run["ranks"], run["partitioner"]) for run in runs]
    assert measured == [
        ("torchvision:resnet18", ranks, name) for ranks in (1, 2) for name in latency.PARTITIONERS
    ]
    for run in runs:
        assert run["input_shape"] == [1, 3, 64, 64]
        assert len(run["latency_ms"]["all"]) == 3
        assert run["verify"]["passed"]
        assert run["predicted_ms"] > 0
        assert run["speedup"] == run["single_device_ms"]["median"] / run["latency_ms"]["median"]
    # The single device is the same measurement on all lines of a job.
    assert len({run["single_device_ms"]["median"] for run in runs}) == 2
    assert [len(run["used_ranks"]) for run in runs if run["partitioner"] == "equal"] == [1, 2]
    assert (found["repeat"], found["warmup"]) == (3, 1)
    assert "2 of 2 done" in done.stderr


def test_the_table_has_a_line_for_every_plan() -> None:
    page = latency.markdown(made_up_result(made_up_run("lp", 20.0), made_up_run("equal", 40.0)))
    head, rule, *lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    names = dict(zip(cells[0], cells[1], strict=True))
    assert names == {
        "model": "resnet18",
        "ranks": "3",
        "partitioner": "lp",
        "latency": "20.0",
        "95th percentile": "40.0",
        "single device": "30.0",
        "speed-up": "1.50",
        "predicted": "10.0",
        "predicted / measured": "0.50",
        "ranks used": "2",
        "messages": "7",
        "sent": "1.50 MB",
    }
    assert (cells[2][2], cells[2][6]) == ("equal", "0.75")
    assert len({len(line) for line in (head, rule, *lines)}) == 1
    assert "load average before: 0.25" in " ".join(page.split())


@pytest.mark.parametrize(("load", "warned"), [(0.3, False), (0.6, True)], ids=["quiet", "busy"])
def test_the_page_tells_of_a_busy_machine(load: float, warned: bool) -> None:
    page = latency.markdown(made_up_result(made_up_run("lp", 20.0), load=load))
    assert ("The machine was busy." in page) == warned


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--ranks", "0"], 2, "0 is not at least 1"),
        (["--repeat", "many"], 2, "invalid number value: 'many'"),
        (["--warmup", "-1"], 2, "-1 is negative"),
        (["--json", "no/such/folder/x.json"], 2, "there is no folder no/such/folder"),
        (["--unknown"], 2, "unrecognized arguments: --unknown"),
    ],
    ids=["ranks", "repeat", "warmup", "json", "unknown"],
)
def test_a_wrong_command_line_is_one_sentence(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main(arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    (sentence,) = printed.err.splitlines()
    assert sentence.startswith("bench/latency: ") and words in sentence


@pytest.mark.mpi
def test_the_sentence_of_a_job_that_fails_is_passed_on() -> None:
    done = finished([*COMMAND, "--models", "no_such_model", "--ranks", "1", "--repeat", "1"])
    assert (done.status, done.stdout, done.left) == (1, "", ())
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bench/latency: no_such_model on 1 rank: ")
    assert "edgeflow_mpi:" not in last and "no_such_model" in last.split(": ", 2)[2]


@pytest.mark.mpi
def test_the_job_ends_with_the_bench() -> None:
    with started([*COMMAND, "--small", "--repeat", "100000"]) as job:
        job.wait_for("resnet18 on 1 rank")
        job.signal(signal.SIGTERM)
        done = job.wait(60)
    assert (done.status, done.left) == (130, ())


@pytest.mark.parametrize(
    ("done", "total", "spent_s", "text"),
    [
        (1, 3, 20.0, " (1 of 3 done, about 40 s left)"),
        (1, 24, 60.0, " (1 of 24 done, about 23 min left)"),
        (3, 3, 99.5, " (3 of 3 done in 100 s)"),
    ],
    ids=["seconds", "minutes", "end"],
)
def test_time_left(done: int, total: int, spent_s: float, text: str) -> None:
    assert latency._time_left(done, total, spent_s) == text


def test_the_module_is_a_command_too() -> None:
    done = finished([sys.executable, "-m", "bench.latency", "--help"], folder=ROOT)
    assert "usage: bench/latency" in done.success()
