"""The age of processes, which a job's own time begins with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeflow_mpi.cluster.start import find_start, process_age_s

TICK_S = 0.01


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_is_as_old_as_it_is() -> None:
    before_s = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        time.sleep(0.2)
        age_s = process_age_s(child.pid)
        passed_s = time.monotonic() - before_s
    assert age_s is not None
    assert 0.2 - 2 * TICK_S <= age_s <= passed_s + 2 * TICK_S


def test_a_program_may_be_called_anything(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = " ".join(["S", *["0"] * 18, "100", "0"])
    (tmp_path / "7" / "stat").write_text(f"7 (a) b (c 3 4) {fields}\n")
    age_s = process_age_s(7, tmp_path)
    assert age_s is not None
    expected_s = time.clock_gettime(time.CLOCK_BOOTTIME) - 100 / os.sysconf("SC_CLK_TCK")
    assert age_s == pytest.approx(expected_s, abs=1.0)


@pytest.mark.parametrize("text", [None, "", "7 (python) S 1", "7 (python) " + "x " * 30], ids=str)
def test_where_nobody_tells_the_job_begins_now(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / str(os.getpid())).mkdir()
        (tmp_path / str(os.getpid()) / "stat").write_text(text)
    assert process_age_s(os.getpid(), tmp_path) is None
    before_s = time.monotonic()
    start = find_start(tmp_path)
    assert before_s <= start.command_s == start.process_s <= time.monotonic()


def test_the_launcher_is_older_than_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 4242)  # the real one may be the system's first
    for pid, name, ticks in ((os.getpid(), "python", 300), (4242, "mpirun", 200)):
        (tmp_path / str(pid)).mkdir()
        fields = " ".join(["S", "1", *["0"] * 17, str(ticks), "0"])
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {fields}\n")
    start = find_start(tmp_path)
    ticks_s = 100 / os.sysconf("SC_CLK_TCK")
    assert start.process_s - start.command_s == pytest.approx(ticks_s, abs=0.05)
    # A script that did something else before it became the launcher says when the job began.
    monkeypatch.setenv("EDGEFLOW_BEGAN_S", str(250 / os.sysconf("SC_CLK_TCK")))
    start = find_start(tmp_path)
    assert start.process_s - start.command_s == pytest.approx(ticks_s / 2, abs=0.05)
    monkeypatch.setenv("EDGEFLOW_BEGAN_S", "soon")
    start = find_start(tmp_path)
    assert start.process_s - start.command_s == pytest.approx(ticks_s, abs=0.05)
