"""The bench beside inference engines: once for real without them, and the page that it writes."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bench.engines import page as pages
from bench.engines.channel import Channel, ChannelError, Listener
from bench.engines.contenders import Contender, parse_contender
from bench.engines.cores import Bursts, Watch, lookouts
from bench.engines.results import at_best, best_engine, median_ms, ratio, read, write
from bench.engines.rounds import Effort
from edgeflow_mpi.errors import EdgeflowError
from tests.jobs import QUICK, finished

COMMAND = [sys.executable, "-m", "bench.engines"]


def line(*turns: tuple[float, ...], **more: Any) -> dict[str, Any]:
    return {"times_ms": turns, "error": 2e-6, "ready_s": 1.0, "peak_bytes": (1e8,), **more}


def made_up(**changes: Any) -> dict[str, Any]:
    """A model on which ours wins with two ranks and loses with one."""
    plan = {"partitioner": "joint", "predicted_s": 0.04, "units": [50, 50], "messages": 60}
    facts = {
        "started": "2026-01-02 03:04 UTC",
        "tree": "abc1234",
        "machine": {"processor": "a processor", "cores": 2, "system": "Linux"},
        "cores": [0, 1],
        "versions": {"torch": "2.13.0"},
        "input_shape": [1, 3, 224, 224],
        "weights": "random weights",
        "options": "",
        "load_before": 0.1,
        "foreign_share": 0.004,
        "bursts": {"counted": 24, "repeated": 7, "disturbed": 0},
        "left_out": {"mnn-1": "mnn-1 (MNN is not installed)"},
        "contenders": {
            "edgeflow-1": line((70.0, 71.0), (69.0, 72.0), compute_ms=(69.0,), plan=plan),
            "edgeflow-2": line(
                (35.0, 36.0), (34.0, 35.0),
                compute_ms=(33.0, 30.0), wait_ms=(1.0, 3.0), peak_bytes=(1e8, 9e7), plan=plan,
            ),
            "edgeflow-apart-2": line((75.0, 75.0, 76.0), (75.0, 74.0, 75.0)),
            "ncnn-1": line((67.0, 67.0), (68.0, 66.0)),
            "ncnn-2": line((36.0, 36.0), (37.0, 36.0)),
            "openvino-1": line((74.0, 75.0), (74.0, 76.0)),
            "torch-1": line((60.0, 60.0), (60.0, 60.0)),
        },
    }  # fmt: skip
    return {**facts, **changes}


def test_the_best_engine_is_a_rival_and_ratios_are_of_medians() -> None:
    entry = made_up()
    assert best_engine(entry, 1) == "ncnn-1", "plain torch is no engine"
    assert best_engine(entry, 2) == "ncnn-2"
    assert median_ms(entry, "edgeflow-1") == 70.5
    found = ratio(entry, "edgeflow-1", "ncnn-1")
    assert found is not None and found[0] == pytest.approx(70.5 / 67.0)
    assert found[1] <= found[2]
    assert ratio(entry, "edgeflow-1", "mnn-1") is None
    assert at_best(entry, "edgeflow-1", ["openvino-1", "ncnn-1", "mnn-1"]) == 69 / 66
    assert at_best(entry, "edgeflow-1", ["mnn-1"]) is None
    assert best_engine({"contenders": {"torch-1": line((1.0,))}}, 1) is None


def test_the_page_says_who_was_faster_and_what_was_missed() -> None:
    text = pages.page({"resnet50": made_up()}, "engines.png")
    rows = [row for row in text.splitlines() if row.startswith("| resnet50")]
    one, two, gain, apart = rows[:4]
    assert "1 rank / ncnn, 1 thread" in one and "1.05" in one and "≤ 0.97" in one
    assert "**no**" in one
    assert "0.97" in two and "≤ 1 " in two and "yes" in two
    assert "2.01" in gain and "≥ 1.8" in gain and "yes" in gain
    assert "of 2 apart" in apart and "1.88" in apart and "yes" not in apart
    assert "engines.png" in text and "MNN is not installed" in text
    assert "**67.0**" in text, "the best engine is bold"
    assert "busy" not in text and "24 bursts, 7 more that did not count." in text.replace(
        "\n  ", " "
    )
    assert "**The machine was busy.**" in pages.page(
        {"resnet50": made_up(foreign_share=0.2)}, None
    ).replace("\n  ", " ")


def test_results_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    assert read(path) == {}
    write(path, {"resnet50": made_up()})
    (entry,) = read(path).values()
    assert ratio(entry, "edgeflow-2", "ncnn-2") == ratio(made_up(), "edgeflow-2", "ncnn-2")


def test_who_takes_part() -> None:
    assert parse_contender("ncnn") == [Contender("ncnn", 1), Contender("ncnn", 2)]
    assert parse_contender("torch-compile") == [
        Contender("torch-compile", 1), Contender("torch-compile", 2),
    ]  # fmt: skip
    assert parse_contender("torch-compile-2") == [Contender("torch-compile", 2)]
    assert parse_contender("edgeflow-apart") == [Contender("edgeflow-apart", 2)]
    for wrong in ("tvm", "ncnn-3", "edgeflow-apart-1", "-1", ""):
        with pytest.raises(ValueError, match=f"^{wrong}$"):
            parse_contender(wrong)
    assert Effort(14, 6).turns == [6, 6, 2]


def test_orders_arrive_and_silence_ends(tmp_path: Path) -> None:
    with Listener(tmp_path / "socket") as listener:
        threading.Thread(target=lambda: _echo(tmp_path / "socket")).start()
        channel = listener.accept(10.0, lambda: True)
        channel.send({"requests": 3})
        assert channel.receive(10.0) == {"requests": 3}
        with pytest.raises(ChannelError, match="closed"):
            channel.receive(10.0)
        channel.close()
        with pytest.raises(ChannelError, match="ended"):
            listener.accept(10.0, lambda: False)
    assert not (tmp_path / "socket").exists()


def _echo(address: Path) -> None:
    channel = Channel.connect(address)
    channel.send(channel.receive())
    channel.close()


@pytest.mark.timeout(240)
def test_a_small_bench_without_engines(tmp_path: Path) -> None:
    command = [
        *COMMAND, "--quick", "--models", "tests.job_models:chain", "--work", str(tmp_path / "work"),
        "--contenders", "edgeflow-2", "edgeflow-apart", "torch-1", "ncnn-1", "--repeats", "3",
        "--job-options", " ".join(QUICK), "--out", str(tmp_path),
    ]  # fmt: skip
    done = finished(command, timeout_s=200.0)
    done.success()
    assert "LEFT OUT: ncnn-1 (ncnn is not installed" in done.stderr
    (entry,) = read(tmp_path / "engines.json").values()
    assert [len(turn) for turn in entry["contenders"]["torch-1"]["times_ms"]] == [2, 1]
    assert len(entry["contenders"]["edgeflow-2"]["compute_ms"]) == 2
    apart = entry["contenders"]["edgeflow-apart-2"]
    assert [len(turn) for turn in apart["times_ms"]] == [4, 2], "both answer at the same time"
    assert len(apart["compute_ms"]) == 2
    assert max(each["error"] for each in entry["contenders"].values()) < 1e-4
    assert "tests.job_models:chain" in (tmp_path / "engines.md").read_text()
    again = finished(command, timeout_s=60.0)
    again.success()
    assert "measured already" in again.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--contenders", "tvm"], "there is no contender tvm"),
        (["--repeats", "0"], "0 is not at least 1"),
        (["--out", "/proc/none"], "/proc/none"),
        (["--notes", "none.md"], "the notes none.md cannot be read"),
    ],
)
def test_misuse_is_one_sentence(options: list[str], words: str) -> None:
    done = finished([*COMMAND, *options])
    assert done.status == 2 and done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("bench.engines: ") and words in sentence


def test_a_burst_beside_a_slow_core_is_repeated() -> None:
    rates = iter([(10.0, 5.0)] * 27 + [(3.0, 5.0), (9.0, 4.0)] + [(9.0, 4.5)] * 9)
    watch = Watch(lambda: next(rates))
    done: list[int] = []

    def burst() -> int:
        done.append(len(done))
        return done[-1]

    # Slow after the first burst, and before the next look; then fine.
    assert watch.undisturbed(burst) == 1
    assert watch.undisturbed(burst) == 2
    assert watch.bursts == Bursts(counted=2, repeated=1)


def test_patience_with_slow_cores_ends() -> None:
    rates = iter([(10.0, 10.0)] + [(10.0, 2.0)] * 1000)
    watch = Watch(lambda: next(rates), patience_s=0.25)
    assert watch.undisturbed(lambda: "an answer") == "an answer"
    assert watch.undisturbed(lambda: "another") == "another"
    assert watch.bursts == Bursts(counted=2, disturbed=2)


def test_all_cores_are_looked_at_and_whoever_looks_ends() -> None:
    core = min(os.sched_getaffinity(0))
    with lookouts((core, core)) as look:
        assert all(rate > 0 for rate in look())
    with pytest.raises(EdgeflowError, match="looks at the cores has ended"):
        look()
